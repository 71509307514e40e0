package openapi

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
)

// Whatever is asked for is read or refused, in the vendor's form.
func FuzzRequest(f *testing.F) {
	f.Add("Action=DescribeRouteEntryList&Version=2016-04-28&RouteTableId=vtb-test", "RouteEntries.1.DstCidrBlock=10.244.0.0%2F24", "")
	f.Add("AccessKeyId=LTAItest&Signature=x&SignatureMethod=HMAC-SHA1&SignatureVersion=1.0&SignatureNonce=n&Timestamp=t", "", "")
	f.Add("", "a=%zz", "ACS3-HMAC-SHA256 Credential=LTAItest,SignedHeaders=host;x-acs-date,Signature=00")
	f.Add("Port=1/65535&Port.1=-1/-1", "", "ACS3-HMAC-SHA256 ,,=")
	f.Fuzz(func(t *testing.T, query, form, authorization string) {
		r := httptest.NewRequest("POST", "/", strings.NewReader(form))
		r.URL.RawQuery = query
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Authorization", authorization)
		q, err := parseRequest(r)
		if err != nil {
			var refused *apiError
			if !errors.As(err, &refused) {
				t.Fatalf("an error of no form: %v", err)
			}
			return
		}
		_, _ = readProof(q)
		_, _ = readRule(q.params)
		_ = q.params.list("Port")
		for _, v := range q.params {
			_, _ = parseDst(v)
			_, _, _ = parsePorts(v)
		}
	})
}
