package openapi

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/alibabacloud-go/tea/tea"
)

// TestVendorsExamples holds the worked examples of the vendor's pages on
// signature versions 1 (request syntax, RPC) and 3.
func TestVendorsExamples(t *testing.T) {
	t.Run("version 1", func(t *testing.T) {
		r := httptest.NewRequest(http.MethodGet, "http://ecs.aliyuncs.com/?Timestamp=2016-02-23T12%3A46%3A24Z&Format=XML&AccessKeyId=testid"+
			"&Action=DescribeRegions&SignatureMethod=HMAC-SHA1&SignatureNonce=3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf&Version=2014-05-26"+
			"&SignatureVersion=1.0&Signature=OLeaidS1JvxuMvnyHOwuJ%2BuX5qY%3D", nil)
		p := proofOf(t, r)
		if got := p.expected("testsecret"); got != p.signature || p.keyID != "testid" {
			t.Errorf("signature %s of key %s, want %s; signed:\n%s", got, p.keyID, p.signature, p.toSign)
		}
	})
	t.Run("version 3", func(t *testing.T) {
		r := httptest.NewRequest(http.MethodPost, "http://ecs.cn-shanghai.aliyuncs.com/?ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd&RegionId=cn-shanghai", nil)
		for name, value := range map[string]string{
			"x-acs-action": "RunInstances", "x-acs-version": "2014-05-26", "x-acs-date": "2023-10-26T10:22:32Z",
			"x-acs-signature-nonce": "3156853299f313e23d1673dc12e1703d",
			"x-acs-content-sha256":  "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
			"Authorization": "ACS3-HMAC-SHA256 Credential=YourAccessKeyId," +
				"SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version," +
				"Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0",
		} {
			r.Header.Set(name, value)
		}
		p := proofOf(t, r)
		if got := p.expected("YourAccessKeySecret"); got != p.signature {
			t.Errorf("signature %s, want %s; signed:\n%s", got, p.signature, p.toSign)
		}
	})
}

func proofOf(t *testing.T, r *http.Request) proof {
	t.Helper()
	q, err := parseRequest(r)
	if err != nil {
		t.Fatal(err)
	}
	p, err := readProof(q)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestVendorsClient: every way in which the vendor's client can sign and carry
// parameters is understood, hard characters included.
func TestVendorsClient(t *testing.T) {
	for _, how := range []form{version1, inQuery, inBody} {
		t.Run(string(how), func(t *testing.T) {
			c := newCloud(t)
			hard := "ropeway cluster=a/b+c*d~e%f&g=h ü"
			parameters := entries(t, "50")
			parameters["RouteEntries.50.Description"] = hard
			body, err := c.vendorCall(c.config(), how, "vpc", "CreateRouteEntries", parameters)
			if err != nil || body["SuccessCount"] == nil || body["RequestId"] == "" {
				t.Fatalf("%v, %v", body, err)
			}
			snap := c.snapshot(t.Context())
			if len(snap.Entries) != 50 || snap.Entries[49].Description != hard {
				t.Errorf("%d entries, the last %q", len(snap.Entries), snap.Entries[len(snap.Entries)-1].Description)
			}
			wrong := c.config()
			wrong.AccessKeySecret = tea.String("another secret")
			if _, err := c.vendorCall(wrong, how, "vpc", "DescribeVpcs", nil); !strings.Contains(code(err), "SignatureDoesNotMatch") {
				t.Errorf("a wrong secret: %v", err)
			}
			wrong = c.config()
			wrong.AccessKeyId = tea.String("nobody")
			if _, err := c.vendorCall(wrong, how, "vpc", "DescribeVpcs", nil); !strings.Contains(code(err), "InvalidAccessKeyId.NotFound") {
				t.Errorf("a wrong key: %v", err)
			}
			c.fault(t, Fault{Kind: FaultError, Code: "QuotaExceeded", Message: "Route entry quota exceeded in this route table", Times: 1})
			_, err = c.vendorCall(c.config(), how, "vpc", "CreateRouteEntries", entries(t, "1"))
			if !strings.Contains(code(err), "QuotaExceeded") || !strings.Contains(err.Error(), "quota exceeded in this route table") {
				t.Errorf("an error comes as %v", err)
			}
		})
	}
}

// TestRoleCredentials: what the metadata service hands out signs calls until
// it expires, the role is detached, or without its token.
func TestRoleCredentials(t *testing.T) {
	for _, how := range []form{version1, inQuery} {
		t.Run(string(how), func(t *testing.T) {
			c := newCloud(t)
			given := c.roleKeys(t)
			config := c.config()
			config.AccessKeyId, config.AccessKeySecret = tea.String(given["AccessKeyId"]), tea.String(given["AccessKeySecret"])
			try := func(token string) string {
				config.SecurityToken = tea.String(token)
				body, err := c.vendorCall(config, how, "sts", "GetCallerIdentity", nil)
				if err != nil {
					return code(err)
				}
				return body["Arn"].(string)
			}
			if got := try(given["SecurityToken"]); got != "acs:ram::1000000000000001:assumed-role/nodes/i-a" {
				t.Errorf("the role is %s", got)
			}
			if got := try("wrong"); !strings.Contains(got, "InvalidSecurityToken.Malformed") {
				t.Errorf("a wrong token: %s", got)
			}
			c.state.Settings.RoleDetached = true
			if got := try(given["SecurityToken"]); !strings.Contains(got, "InvalidSecurityToken.Expired") {
				t.Errorf("a detached role: %s", got)
			}
			c.state.Settings.RoleDetached = false
			c.state.Issued[0].Expiration = c.now()
			if got := try(given["SecurityToken"]); !strings.Contains(got, "InvalidSecurityToken.Expired") {
				t.Errorf("an expired token: %s", got)
			}
		})
	}
}

// roleKeys asks the metadata service as instance a does.
func (c *cloudUnderTest) roleKeys(t *testing.T) map[string]string {
	t.Helper()
	status, body := c.metadataAs("192.168.0.1", http.MethodGet, "/latest/meta-data/ram/security-credentials/nodes", nil)
	given := map[string]string{}
	if err := json.Unmarshal([]byte(body), &given); err != nil || status != http.StatusOK || given["Code"] != "Success" {
		t.Fatalf("credentials: %d %s %v", status, body, err)
	}
	return given
}

// signed is a request of version 1 with what a test wants wrong about it.
func (c *cloudUnderTest) signed(change func(url.Values)) *http.Request {
	values := url.Values{
		"Action": {"DescribeVpcs"}, "Version": {"2016-04-28"}, "Format": {"JSON"}, "AccessKeyId": {c.spec.Key.ID}, "SignatureMethod": {"HMAC-SHA1"},
		"SignatureVersion": {"1.0"}, "SignatureNonce": {"n"}, "Timestamp": {gmt(c.clock.now())},
	}
	change(values)
	values.Set("Signature", "x")
	r := httptest.NewRequest(http.MethodPost, "http://vpc/", strings.NewReader(values.Encode()))
	q := &request{http: r, params: params{}}
	for name := range values {
		q.params[name] = values.Get(name)
	}
	if p, err := readV1(q); err == nil {
		values.Set("Signature", p.expected(c.spec.Key.Secret))
	}
	r = httptest.NewRequest(http.MethodPost, "http://vpc/", strings.NewReader(values.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

func (c *cloudUnderTest) codeOf(r *http.Request) string {
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	var body struct{ Code string }
	if err := json.NewDecoder(bytes.NewReader(w.Body.Bytes())).Decode(&body); err != nil {
		return err.Error()
	}
	return body.Code
}

func TestRefusedRequests(t *testing.T) {
	c := newCloud(t)
	if got := c.codeOf(c.signed(func(url.Values) {})); got != "" {
		t.Fatalf("a good request is refused: %s", got)
	}
	for want, change := range map[string]func(url.Values){
		"SignatureNonceUsed":       func(url.Values) {},
		"InvalidTimeStamp.Expired": func(v url.Values) { v.Set("Timestamp", gmt(c.clock.now().Add(-16*time.Minute))) },
		"InvalidTimeStamp.Format":  func(v url.Values) { v.Set("Timestamp", "yesterday") },
		"MissingAccessKeyId":       func(v url.Values) { v.Del("AccessKeyId") },
		"MissingParameter":         func(v url.Values) { v.Del("SignatureNonce") },
		"InvalidParameter":         func(v url.Values) { v.Set("SignatureMethod", "HMAC-MD5") },
		"InvalidVersion":           func(v url.Values) { v.Set("Version", "2000-01-01"); v.Set("SignatureNonce", "2") },
		"InvalidApi.NotFound":      func(v url.Values) { v.Set("Action", "Nothing"); v.Set("SignatureNonce", "3") },
	} {
		if got := c.codeOf(c.signed(change)); got != want {
			t.Errorf("got %q, want %s", got, want)
		}
	}
	c.spec.VendorKey = AccessKey{ID: "LTAIvendor", Secret: "another secret"}
	c.state.Settings.KeyDisabled = true
	if got := c.codeOf(c.signed(func(v url.Values) { v.Set("SignatureNonce", "4") })); got != "InvalidAccessKeyId.Inactive" {
		t.Errorf("a disabled key: %q", got)
	}
	config := c.config()
	config.AccessKeyId, config.AccessKeySecret = tea.String("LTAIvendor"), tea.String("another secret")
	if body, err := c.vendorCall(config, inQuery, "sts", "GetCallerIdentity", nil); err != nil || body["PrincipalId"] != "LTAIvendor" {
		t.Errorf("the other key beside the disabled one: %v, %v", body, err)
	}
}

// TestTamperedV3: whatever of a request of version 3 decides about the call is
// protected by its signature.
func TestTamperedV3(t *testing.T) {
	c := newCloud(t)
	original := c.capture(t)
	for name, change := range map[string]func(*http.Request){
		"query":          func(r *http.Request) { r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "vpc-test", "vpc-else", 1) },
		"action":         func(r *http.Request) { r.Header.Set("x-acs-action", "DescribeVSwitches") },
		"unsigned extra": func(r *http.Request) { r.Header.Set("x-acs-security-token", "x") },
		"payload hash":   func(r *http.Request) { r.Header.Set("x-acs-content-sha256", strings.Repeat("0", 64)) },
		"path":           func(r *http.Request) { r.URL.Path = "/other" },
		"algorithm":      func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") },
	} {
		r := original.Clone(t.Context())
		change(r)
		if got := c.codeOf(r); got != "SignatureDoesNotMatch" && got != "IncompleteSignature" {
			t.Errorf("%s changed: %q", name, got)
		}
	}
	if got := c.codeOf(original.Clone(t.Context())); got != "" {
		t.Errorf("the request itself is refused: %s", got)
	}
}

// capture takes a request that the vendor's client makes.
func (c *cloudUnderTest) capture(t *testing.T) *http.Request {
	t.Helper()
	seen := make(chan *http.Request, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case seen <- r.Clone(context.WithoutCancel(r.Context())):
		default: // the client tries again
		}
		panic(http.ErrAbortHandler)
	}))
	defer server.Close()
	config := c.config()
	config.Endpoint = tea.String(strings.TrimPrefix(server.URL, "http://"))
	_, _ = c.vendorCall(config, inQuery, "vpc", "DescribeVpcs", map[string]string{"VpcId": testVPC}) // gets no answer
	var taken *http.Request
	select {
	case taken = <-seen:
	default:
		t.Fatal("the vendor's client made no request")
	}
	taken.Body = http.NoBody
	return taken
}
