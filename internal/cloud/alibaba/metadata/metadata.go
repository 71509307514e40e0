// Package metadata asks an Alibaba Cloud ECS instance's metadata service who the
// instance is and which rights its role has. It speaks the hardened mode (IMDSv2:
// a token by PUT, then GETs that carry it) and no other, since the plain mode
// gives the role's keys to whoever can make the instance fetch a URL.
package metadata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Address is where the service answers on every instance.
const Address = "http://100.100.100.200"

// The service's words (ECS user guide, "Instance metadata").
const (
	tokenPath   = "/latest/api/token"
	dataPath    = "/latest/meta-data/"
	rolePath    = "ram/security-credentials/"
	ttlHeader   = "X-aliyun-ecs-metadata-token-ttl-seconds"
	tokenHeader = "X-aliyun-ecs-metadata-token"
)

const (
	tokenLife   = 6 * time.Hour    // the longest that the service gives
	tokenMargin = 10 * time.Minute // a token is renewed this long before it ends
	patience    = 3 * time.Second  // for one request: the service is on the host
	mostBytes   = 64 << 10
)

// Client asks one metadata service. It is safe for concurrent use.
type Client struct {
	base string
	http *http.Client
	now  func() time.Time

	mu     sync.Mutex
	token  string
	renews time.Time
}

// New returns a client of the service at base, a URL such as Address; "" means
// Address. It asks nothing yet.
func New(base string) *Client {
	if base == "" {
		base = Address
	}
	// No proxy: the address is the instance's own, and a proxy would answer
	// with its own instance's keys.
	transport := &http.Transport{DisableKeepAlives: true}
	return &Client{base: strings.TrimRight(base, "/"), http: &http.Client{Transport: transport, Timeout: patience}, now: time.Now}
}

// StatusError is an answer other than 200.
type StatusError struct {
	Path   string
	Status int
}

// Error says what was asked and what the service said.
func (e *StatusError) Error() string {
	return fmt.Sprintf("the metadata service answered %d to %s", e.Status, e.Path)
}

// NotFound reports whether the service is there but has no such key: for the
// role's keys, that the instance has no role.
func NotFound(err error) bool {
	var status *StatusError
	return errors.As(err, &status) && status.Status == http.StatusNotFound
}

// Get returns the value of one key, such as region-id, without space around it.
// A token that the service no longer takes is renewed once.
func (c *Client) Get(ctx context.Context, key string) (string, error) {
	for try := 0; ; try++ {
		token, err := c.currentToken(ctx)
		if err != nil {
			return "", fmt.Errorf("asking the metadata service for %s: %w", key, err)
		}
		value, err := c.ask(ctx, http.MethodGet, dataPath+key, tokenHeader, token)
		if err == nil {
			return value, nil
		}
		var status *StatusError
		if try > 0 || !errors.As(err, &status) || status.Status != http.StatusUnauthorized && status.Status != http.StatusForbidden {
			return "", fmt.Errorf("asking the metadata service for %s: %w", key, err)
		}
		c.drop(token)
	}
}

func (c *Client) currentToken(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token != "" && c.now().Before(c.renews) {
		return c.token, nil
	}
	token, err := c.ask(ctx, http.MethodPut, tokenPath, ttlHeader, strconv.Itoa(int(tokenLife/time.Second)))
	if err != nil {
		return "", err
	}
	c.token, c.renews = token, c.now().Add(tokenLife-tokenMargin)
	return token, nil
}

// drop forgets a token, unless another caller has renewed it already.
func (c *Client) drop(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token == token {
		c.token = ""
	}
}

func (c *Client) ask(ctx context.Context, method, path, header, value string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set(header, value)
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, mostBytes))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", &StatusError{Path: path, Status: resp.StatusCode}
	}
	return strings.TrimSpace(string(body)), nil
}

// Keys are the temporary keys of the instance's role.
type Keys struct {
	AccessKeyID, AccessKeySecret, SecurityToken string
	Expires                                     time.Time
}

// String keeps the secrets out of logs.
func (k Keys) String() string {
	return fmt.Sprintf("temporary keys %s until %s", k.AccessKeyID, k.Expires.Format(time.RFC3339))
}

// GoString keeps the secrets out of logs.
func (k Keys) GoString() string { return k.String() }

// Keys asks for the keys of the instance's role. An instance without a role is
// an error for which NotFound holds.
func (c *Client) Keys(ctx context.Context) (Keys, error) {
	role, err := c.Get(ctx, rolePath)
	if err != nil {
		return Keys{}, err
	}
	role, _, _ = strings.Cut(role, "\n")
	if role == "" {
		return Keys{}, fmt.Errorf("the instance has no RAM role: %w", &StatusError{Path: dataPath + rolePath, Status: http.StatusNotFound})
	}
	text, err := c.Get(ctx, rolePath+role)
	if err != nil {
		return Keys{}, err
	}
	return parseKeys(role, text)
}

// parseKeys reads the service's document. Its errors never quote the document.
func parseKeys(role, text string) (Keys, error) {
	var doc struct {
		Code, AccessKeyID, AccessKeySecret, SecurityToken, Expiration string
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		return Keys{}, fmt.Errorf("the metadata service's keys of role %s are not JSON", role)
	}
	if doc.Code != "Success" || doc.AccessKeyID == "" || doc.AccessKeySecret == "" || doc.SecurityToken == "" {
		return Keys{}, fmt.Errorf("the metadata service has no keys of role %s (code %q): see that the role exists and that ECS may assume it", role, doc.Code)
	}
	expires, err := time.Parse(time.RFC3339, doc.Expiration)
	if err != nil {
		return Keys{}, fmt.Errorf("the metadata service's keys of role %s: %w", role, err)
	}
	return Keys{AccessKeyID: doc.AccessKeyID, AccessKeySecret: doc.AccessKeySecret, SecurityToken: doc.SecurityToken, Expires: expires}, nil
}
