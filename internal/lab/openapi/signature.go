package openapi

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// clockSkew is how far a request's time may be from the server's; the vendor's
// pages say 15 minutes.
const clockSkew = 15 * time.Minute

// manyNonces is when it is worth to look for those that are too old to matter.
const manyNonces = 1 << 14

// algorithmV3 names signature version 3.
const algorithmV3 = "ACS3-HMAC-SHA256"

// proof is what a signature claims, whatever its version.
type proof struct {
	keyID string
	token string // of temporary credentials
	nonce string
	time  string // ISO 8601
	// signature is the claim, expected recomputes it from a secret, toSign is
	// shown to a client whose signature does not match, as the vendor does.
	signature string
	toSign    string
	expected  func(secret string) string
}

// readProof finds the signature of a request: version 3 in the header
// Authorization, version 1 among the parameters.
func readProof(q *request) (proof, error) {
	if authorization := q.http.Header.Get("Authorization"); authorization != "" {
		return readV3(q, authorization)
	}
	return readV1(q)
}

// readV1 follows the page "Signature method" of RPC APIs, version 1.0.
func readV1(q *request) (proof, error) {
	keyID, err := q.params.need("AccessKeyId")
	if err != nil {
		return proof{}, bad("MissingAccessKeyId", "AccessKeyId is mandatory for this action.")
	}
	for _, name := range []string{"Signature", "SignatureNonce", "Timestamp", "SignatureMethod"} {
		if _, err := q.params.need(name); err != nil {
			return proof{}, err
		}
	}
	if m, v := q.params["SignatureMethod"], q.params["SignatureVersion"]; m != "HMAC-SHA1" || v != "1.0" {
		return proof{}, bad("InvalidParameter", "SignatureMethod %q with SignatureVersion %q is not supported.", m, v)
	}
	signed := url.Values{}
	for name, value := range q.params {
		if name != "Signature" {
			signed.Set(name, value)
		}
	}
	toSign := toSignV1(q.http.Method, signed)
	return proof{
		keyID: keyID, token: q.params["SecurityToken"], nonce: q.params["SignatureNonce"], time: q.params["Timestamp"],
		signature: q.params["Signature"], toSign: toSign,
		expected: func(secret string) string { return hmacV1(toSign, secret) },
	}, nil
}

// SignV1 returns the signature, version 1, of a call with these parameters and
// no other, for the lab's stand-ins of the vendor's programs.
func SignV1(method string, parameters url.Values, secret string) string {
	return hmacV1(toSignV1(method, parameters), secret)
}

func toSignV1(method string, parameters url.Values) string {
	return method + "&" + escape("/") + "&" + escape(canonicalQuery(parameters))
}

func hmacV1(text, secret string) string {
	mac := hmac.New(sha1.New, []byte(secret+"&"))
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// readV3 follows the page "Request body and signature method V3".
func readV3(q *request, authorization string) (proof, error) {
	fields := map[string]string{}
	rest, found := strings.CutPrefix(authorization, algorithmV3+" ")
	if !found {
		return proof{}, bad("IncompleteSignature", "The Authorization header must begin with %s.", algorithmV3)
	}
	for field := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		fields[name] = value
	}
	headers := strings.Split(fields["SignedHeaders"], ";")
	if fields["Credential"] == "" || fields["Signature"] == "" || fields["SignedHeaders"] == "" {
		return proof{}, bad("IncompleteSignature", "The Authorization header needs Credential, SignedHeaders and Signature.")
	}
	if err := checkSignedHeaders(q, headers); err != nil {
		return proof{}, err
	}
	request := canonicalRequest(q, headers)
	sum := sha256.Sum256([]byte(request))
	toSign := algorithmV3 + "\n" + hex.EncodeToString(sum[:])
	return proof{
		keyID: fields["Credential"], token: q.http.Header.Get("x-acs-security-token"),
		nonce: q.http.Header.Get("x-acs-signature-nonce"), time: q.http.Header.Get("x-acs-date"),
		signature: fields["Signature"], toSign: request,
		expected: func(secret string) string {
			mac := hmac.New(sha256.New, []byte(secret))
			mac.Write([]byte(toSign))
			return hex.EncodeToString(mac.Sum(nil))
		},
	}, nil
}

// checkSignedHeaders wants what decides about the call to be signed, and the
// payload's hash to be the payload's.
func checkSignedHeaders(q *request, headers []string) error {
	must := []string{"host"}
	for name := range q.http.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-acs-") {
			must = append(must, name)
		}
	}
	for _, name := range []string{"x-acs-action", "x-acs-version", "x-acs-date", "x-acs-signature-nonce", "x-acs-content-sha256"} {
		if q.http.Header.Get(name) == "" {
			return bad("MissingParameter", "The header %s is mandatory for this action.", name)
		}
	}
	for _, name := range must {
		if !slices.Contains(headers, name) {
			return bad("IncompleteSignature", "The header %s is not signed.", name)
		}
	}
	sum := sha256.Sum256(q.body)
	if got := q.http.Header.Get("x-acs-content-sha256"); got != hex.EncodeToString(sum[:]) {
		return bad("SignatureDoesNotMatch", "The header x-acs-content-sha256 is not the hash of the body.")
	}
	return nil
}

func canonicalRequest(q *request, headers []string) string {
	path := q.http.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	var text strings.Builder
	text.WriteString(q.http.Method + "\n" + path + "\n" + canonicalQuery(q.query) + "\n")
	for _, name := range headers {
		value := strings.TrimSpace(q.http.Header.Get(name))
		if name == "host" {
			value = q.http.Host
		}
		text.WriteString(name + ":" + value + "\n")
	}
	text.WriteString("\n" + strings.Join(headers, ";") + "\n" + q.http.Header.Get("x-acs-content-sha256"))
	return text.String()
}

// canonicalQuery is the query in the order of names, escaped by RFC 3986.
func canonicalQuery(values url.Values) string {
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	var pairs []string
	for _, name := range names {
		pairs = append(pairs, escape(name)+"="+escape(values.Get(name)))
	}
	return strings.Join(pairs, "&")
}

// escape is RFC 3986: a space is %20, * is %2A and ~ stays.
func escape(text string) string {
	return strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(url.QueryEscape(text))
}

// authenticate verifies a request and returns whose it is. The caller holds
// the lock.
func (s *Server) authenticate(q *request) (principal string, err error) {
	p, err := readProof(q)
	if err != nil {
		return "", err
	}
	principal, secret, err := s.credentials(p)
	if err != nil {
		return "", err
	}
	if !hmac.Equal([]byte(p.expected(secret)), []byte(p.signature)) {
		return "", bad("SignatureDoesNotMatch", "Specified signature is not matched with our calculation. server string to sign is:%s", p.toSign)
	}
	return principal, s.checkFresh(p)
}

// credentials finds the secret that belongs to a key, and says whose it is.
func (s *Server) credentials(p proof) (principal, secret string, err error) {
	for _, key := range []AccessKey{s.spec.Key, s.spec.VendorKey} {
		if p.keyID != key.ID || key.ID == "" {
			continue
		}
		if s.state.Settings.KeyDisabled && key == s.spec.Key {
			return "", "", refuse(http.StatusForbidden, "InvalidAccessKeyId.Inactive", "The specified access key is disabled.")
		}
		if p.token != "" {
			return "", "", bad("InvalidSecurityToken.MismatchWithAccessKey", "Specified SecurityToken mismatch with the AccessKey.")
		}
		return key.Principal(), key.Secret, nil
	}
	for _, t := range s.state.Issued {
		if t.AccessKeyID != p.keyID {
			continue
		}
		switch {
		case p.token == "":
			return "", "", bad("MissingSecurityToken", "SecurityToken is mandatory for this action.")
		case p.token != t.SecurityToken:
			return "", "", bad("InvalidSecurityToken.Malformed", "Specified SecurityToken is malformed.")
		case s.state.Settings.RoleDetached || !s.now().Before(t.Expiration):
			return "", "", bad("InvalidSecurityToken.Expired", "Specified SecurityToken is expired.")
		}
		return "role/" + s.spec.Role + "/" + t.Instance, t.AccessKeySecret, nil
	}
	return "", "", notFound("InvalidAccessKeyId.NotFound", "Specified access key is not found.")
}

// checkFresh refuses what is old or was there before.
func (s *Server) checkFresh(p proof) error {
	at, err := time.Parse("2006-01-02T15:04:05Z", p.time)
	if err != nil {
		return bad("InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted.")
	}
	now := s.now()
	if d := now.Sub(at); d > clockSkew || d < -clockSkew {
		return bad("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
	}
	if p.nonce == "" {
		return bad("MissingParameter", "The signature nonce is mandatory for this action.")
	}
	if len(s.nonces) > manyNonces {
		maps.DeleteFunc(s.nonces, func(_ string, seen time.Time) bool { return now.Sub(seen) > 2*clockSkew })
	}
	if _, used := s.nonces[p.nonce]; used {
		return bad("SignatureNonceUsed", "Specified signature nonce was used already.")
	}
	s.nonces[p.nonce] = now
	return nil
}
