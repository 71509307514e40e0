package alibaba

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// mostAnswer bounds an answer's length in bytes. A page of 100 entries is about
// 60 KiB.
const mostAnswer = 16 << 20

// sender sends what the vendor's client has signed. Theirs keeps one client per
// process and address, with the first caller's settings.
type sender struct{ http *http.Client }

func newSender() sender {
	return sender{&http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: callPatience,
			MaxIdleConnsPerHost:   2,
			IdleConnTimeout:       time.Minute,
			ForceAttemptHTTP2:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Call sends a request and reads the whole answer.
func (s sender) Call(req *http.Request, _ *http.Transport) (*http.Response, error) {
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	if len(body) > mostAnswer {
		return nil, fmt.Errorf("an answer of more than %d bytes", mostAnswer)
	}
	if resp.StatusCode >= http.StatusMultipleChoices && !isObject(body) {
		// A proxy's or load balancer's page: say so in the API's own form, so
		// that the status is not lost behind a syntax error.
		body = fmt.Appendf(nil, `{"Code":"HTTP.%d","Message":"an answer that is not the API's: see spec.cloud.endpoint and proxies"}`, resp.StatusCode)
		resp.StatusCode = max(resp.StatusCode, http.StatusBadRequest)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	return resp, nil
}

func isObject(body []byte) bool {
	var object map[string]json.RawMessage
	return json.Unmarshal(body, &object) == nil
}
