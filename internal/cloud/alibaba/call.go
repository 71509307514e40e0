package alibaba

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	openapi "github.com/alibabacloud-go/darabonba-openapi/v2/client"
	"github.com/alibabacloud-go/tea/dara"

	"ropeway.dev/ropeway/internal/cloud"
)

// callPatience bounds one call, answer included.
const callPatience = 20 * time.Second

// readTries is how often a reading call is tried. Writing calls are tried once:
// what became of them decides what is to be done next, and that is planned by
// who called.
const readTries = 5

// longestPause is between two tries of a reading call; longestHold is how long
// one waits because the cloud asks for it.
const (
	longestPause = 8 * time.Second
	longestHold  = 30 * time.Second
)

// caller makes calls of the OpenAPI by the vendor's client: it signs (v3,
// ACS3-HMAC-SHA256) and sends; times, classes of errors and back-off are ours.
type caller struct {
	region   string
	override string
	keys     keySource
	http     dara.HttpClient
	observe  func(action string, took time.Duration, err error)
	log      *slog.Logger
	pause    time.Duration // before the second try of a reading call; doubles
	now      func() time.Time

	mu    sync.Mutex
	until map[string]time.Time // action -> the cloud asked not to be called before
}

// read makes a call that changes nothing. It waits out throttling and what
// passes, at most readTries times, so that one refused page does not spoil a
// listing of many. What the cloud wants to be left alone for longer than
// longestHold is for who called to plan.
func (c *caller) read(ctx context.Context, p product, action string, params map[string]string, into any) error {
	pause := c.pause
	for try := 1; ; try++ {
		rest := c.held(action)
		if rest > longestHold {
			return tooEarly(action, rest)
		}
		err := c.wait(ctx, action, rest)
		if err == nil {
			err = c.once(ctx, p, action, params, into)
		}
		if err == nil || try == readTries || !cloud.ClassOf(err).Passes() || ctx.Err() != nil {
			return err
		}
		if err := c.wait(ctx, action, pause/2+rand.N(pause/2+1)); err != nil {
			return err
		}
		pause = min(2*pause, longestPause)
	}
}

// write makes a call that may change something, once. While the cloud has asked
// for patience with this action it is not called at all.
func (c *caller) write(ctx context.Context, p product, action string, params map[string]string, into any) error {
	if rest := c.held(action); rest > 0 {
		return tooEarly(action, rest)
	}
	return c.once(ctx, p, action, params, into)
}

// tooEarly is the error of a call that was not made.
func tooEarly(action string, rest time.Duration) error {
	return &cloud.Error{Class: cloud.Throttled, Action: action, Code: "Throttling", After: rest,
		Message: "not called: the cloud has asked to wait"}
}

// held returns how long the cloud still wants the action not to be called.
func (c *caller) held(action string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, c.until[action].Sub(c.now()))
}

func (c *caller) hold(action string, after time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.until == nil {
		c.until = map[string]time.Time{}
	}
	c.until[action] = c.now().Add(after)
}

func (c *caller) wait(ctx context.Context, action string, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return &cloud.Error{Class: cloud.Passing, Action: action, Message: "not called", Err: ctx.Err()}
	}
}

// once makes one call and decodes its answer into a struct.
func (c *caller) once(ctx context.Context, p product, action string, params map[string]string, into any) error {
	start := c.now()
	err := c.exchange(ctx, p, action, params, into)
	if after := cloud.AfterOf(err); after > 0 {
		c.hold(action, after)
	}
	if cloud.Is(err, cloud.Unauthenticated) {
		c.keys.refused()
	}
	if c.observe != nil {
		c.observe(action, c.now().Sub(start), err)
	}
	if err != nil {
		c.log.Debug("cloud call failed", "action", action, "class", cloud.ClassOf(err).String(), "err", err, "request", cloud.RequestOf(err))
	}
	return err
}

func (c *caller) exchange(ctx context.Context, p product, action string, params map[string]string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	client, err := c.client(ctx, p)
	if err != nil {
		return named(action, err)
	}
	answer, err := client.DoRequestWithCtx(ctx, &openapi.Params{
		Action: dara.String(action), Version: dara.String(p.version), Protocol: client.Protocol,
		Pathname: dara.String("/"), Method: dara.String("POST"), AuthType: dara.String("AK"), Style: dara.String("RPC"),
		ReqBodyType: dara.String("formData"), BodyType: dara.String("string"),
	}, &openapi.OpenApiRequest{Query: c.query(params)}, &dara.RuntimeOptions{})
	if err != nil {
		return c.failure(ctx, p, action, err)
	}
	body, ok := answer["body"].(string)
	if !ok {
		return &cloud.Error{Class: cloud.Lost, Action: action, Err: errors.New("an answer without a body")}
	}
	if err := json.Unmarshal([]byte(body), into); err != nil {
		return &cloud.Error{Class: cloud.Lost, Action: action, Err: fmt.Errorf("reading the answer: %w", err)}
	}
	return nil
}

// client returns the vendor's client for one call, with the keys of this moment.
func (c *caller) client(ctx context.Context, p product) (*openapi.Client, error) {
	at, err := endpointOf(p, c.region, c.override)
	if err != nil {
		return nil, &cloud.Error{Class: cloud.Permanent, Err: err}
	}
	keys, err := c.keys.credential(ctx)
	if err != nil {
		return nil, err
	}
	client, err := openapi.NewClient(&openapi.Config{
		Credential: keys, RegionId: dara.String(c.region), Endpoint: dara.String(at.host), Protocol: dara.String(at.protocol),
		UserAgent: dara.String("ropeway"), HttpClient: c.http,
	})
	if err != nil {
		return nil, &cloud.Error{Class: cloud.Permanent, Err: err}
	}
	client.DisableSDKError = dara.Bool(true) // keep the typed errors
	return client, nil
}

func (c *caller) query(params map[string]string) map[string]*string {
	out := map[string]*string{"RegionId": dara.String(c.region)}
	for name, value := range params {
		out[name] = dara.String(value)
	}
	return out
}

// named says which action an error is about.
func named(action string, err error) error {
	var e *cloud.Error
	if errors.As(err, &e) {
		copied := *e
		copied.Action = action
		return &copied
	}
	return &cloud.Error{Class: cloud.Lost, Action: action, Err: err}
}

// answered is what the vendor's typed errors have in common.
type answered interface {
	error
	GetStatusCode() *int
	GetCode() *string
	GetRequestId() *string
	GetData() map[string]any
}

// failure turns an error of the vendor's client into ours.
func (c *caller) failure(ctx context.Context, p product, action string, err error) error {
	var a answered
	if errors.As(err, &a) {
		return refusal(p, action, a)
	}
	e := &cloud.Error{Class: cloud.Lost, Action: action, Err: err}
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
		e.Class, e.Message, e.Err = cloud.Unreachable, c.noWay(), op // nothing was sent
	}
	if ctx.Err() != nil {
		e.Err = fmt.Errorf("%w (%v)", ctx.Err(), e.Err)
	}
	return e
}

// noWay says why there may be no connection, and what to do.
func (c *caller) noWay() string {
	if c.override != "" {
		return "there is no connection to the endpoint that is configured (spec.cloud.endpoint, --cloud-endpoint)"
	}
	return "there is no connection to the region's endpoint for machines of the VPC; from elsewhere give the public one (spec.cloud.endpoint, --cloud-endpoint): " + publicEndpoint
}

// refusal reads an answer of the API that is an error.
func refusal(p product, action string, a answered) error {
	code := dara.StringValue(a.GetCode())
	e := &cloud.Error{
		Class:   classify(code, dara.IntValue(a.GetStatusCode())),
		Action:  action,
		Code:    code,
		Request: dara.StringValue(a.GetRequestId()),
	}
	if text, ok := a.GetData()["Message"].(string); ok {
		e.Message = withoutRequest(text, e.Request)
	}
	switch e.Class {
	case cloud.Forbidden:
		e.Message = fmt.Sprintf("%s (add %s:%s to the RAM policy of the controller's role or user)", e.Message, p.name, action)
	case cloud.Unauthenticated:
		// These messages repeat what was signed, tokens included.
		e.Message = "the access key, its token or this machine's clock is not accepted: see spec.cloud.credentialsSecret, or the instance's RAM role"
	}
	if t := (*openapi.ThrottlingError)(nil); errors.As(error(a), &t) {
		e.After = time.Duration(dara.Int64Value(t.RetryAfter)) * time.Millisecond
	}
	return e
}

// withoutRequest takes the id of the request out of the cloud's words, where it
// stands in its own field.
func withoutRequest(text, request string) string {
	if request == "" {
		return text
	}
	return strings.ReplaceAll(text, request, "...")
}
