package openapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Plane is what the VPC's data plane has to do.
type Plane struct {
	// Tables are the route tables, the system's first.
	Tables []Table
	// Checked says which hosts' interfaces check source and destination:
	// host -> on.
	Checked map[string]bool
	// Off says which hosts have no running instance: host -> yes.
	Off map[string]bool
	// Blocked says what the security group keeps out: "ipip", "vxlan" or
	// "pod-cidr" -> yes.
	Blocked map[string]bool
}

// Table is a route table and the hosts whose vSwitches are bound to it.
type Table struct {
	// Number is 0 for the system table.
	Number int
	// Routes maps destinations to hosts.
	Routes map[netip.Prefix]string
	Hosts  []string
}

// Fabric is a data plane that follows the cloud.
type Fabric interface {
	// Set makes the data plane equal to what it is given; what others have
	// written into it stays.
	Set(ctx context.Context, p Plane) error
}

// Options are what a Server needs besides its Spec; all may be zero.
type Options struct {
	// Fabric follows the state; nothing does when nil.
	Fabric Fabric
	// StateFile keeps the state; it dies with the process when empty.
	StateFile string
	// Now is the clock, time.Now when nil.
	Now func() time.Time
	Log *slog.Logger
}

// Server is the cloud. It is an http.Handler for the OpenAPI and the metadata
// service; Admin is its back door.
type Server struct {
	spec    Spec
	options Options
	log     *slog.Logger
	kick    chan struct{} // a passing state has a new end

	mu       sync.Mutex
	state    *state
	nonces   map[string]time.Time // nonce -> when it was used
	sessions map[string]session   // metadata token -> whose
	writing  bool                 // the VPC has its writer
	calls    calls
	plan     *Plane // what the fabric has
}

// New makes a cloud, with the state that the state file holds if there is one.
func New(spec Spec, o Options) (*Server, error) {
	if err := spec.Settings.Validate(); err != nil {
		return nil, fmt.Errorf("the cloud's settings: %w", err)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	st, err := loadState(o.StateFile, spec)
	if err != nil {
		return nil, err
	}
	return &Server{
		spec: spec, options: o, log: o.Log, state: st, kick: make(chan struct{}, 1),
		nonces: map[string]time.Time{}, sessions: map[string]session{}, calls: newCalls(),
	}, nil
}

func (s *Server) now() time.Time { return s.options.Now() }

// Follow ends passing states when they are due, and keeps the data plane
// equal to the state, until ctx is done.
func (s *Server) Follow(ctx context.Context) {
	for {
		s.mu.Lock()
		followed := s.settle(ctx)
		next, any := s.state.due()
		s.mu.Unlock()
		var timer, again <-chan time.Time
		if any {
			timer = time.After(max(next.Sub(s.now()), time.Millisecond))
		}
		if !followed {
			again = time.After(retryFabric)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.kick:
		case <-timer:
		case <-again:
		}
	}
}

// retryFabric is when a data plane that failed is tried again.
const retryFabric = time.Second

// settle ends what is due, makes the data plane follow, and says whether it did.
// The caller holds the lock.
func (s *Server) settle(ctx context.Context) (followed bool) {
	if s.plan == nil {
		// A data plane of which nothing is known, after a restart, first gets what
		// it carries at most: it removes only what it has been given, and a
		// deletion may have fallen due while there was no cloud.
		s.follow(ctx)
	}
	changed := s.state.settle(s.now())
	// Saved last: who is killed in between finds the deletion still to be ended.
	followed = s.follow(ctx)
	if changed {
		s.save()
	}
	return followed
}

// follow gives the data plane the state, if it is another than last time, and says
// whether it has it.
func (s *Server) follow(ctx context.Context) bool {
	if s.options.Fabric == nil {
		return true
	}
	p := s.plane()
	if s.plan == nil || !reflect.DeepEqual(p, *s.plan) {
		if err := s.options.Fabric.Set(ctx, p); err != nil {
			s.log.Error("the data plane does not follow", "err", err)
			return false
		}
		s.plan = &p
	}
	return true
}

// save writes the state and wakes Follow. A cloud that cannot write goes on.
func (s *Server) save() {
	if err := s.state.save(s.options.StateFile); err != nil {
		s.log.Error("state is not saved", "err", err)
	}
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// call is one call on its way.
type call struct {
	ctx       context.Context
	params    params
	requestID string
	principal string
	hit       strikes
	page      int // the largest that the action gives
	// elsewhere is set when the caller asked for another region, where this
	// account has nothing.
	elsewhere bool
}

// answer is a JSON object on the wire.
type answer map[string]any

// action is one action of an API.
type action struct {
	// writes marks those that need the VPC for themselves.
	writes bool
	// page is the largest page of a list by number, maxPage when 0.
	page int
	run  func(*Server, *call) (answer, error)
}

// api is one product's.
type api struct {
	name    string // as RAM policies call it
	host    string
	actions map[string]action
}

// apis are the products: version -> product.
func apis() map[string]api {
	return map[string]api{
		"2016-04-28": {"vpc", "vpc.aliyuncs.com", vpcActions()},
		"2014-05-26": {"ecs", "ecs.aliyuncs.com", ecsActions()},
		"2015-04-01": {"sts", "sts.aliyuncs.com", stsActions()},
	}
}

// ServeHTTP answers calls of the OpenAPI and of the metadata service.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, metadataRoot) {
		s.serveMetadata(w, r)
		return
	}
	began := s.now()
	q, err := parseRequest(r)
	if err != nil {
		s.reply(w, &call{requestID: newRequestID()}, r.Host, nil, err)
		return
	}
	c := &call{ctx: r.Context(), params: q.params, requestID: newRequestID()}
	result, err := s.do(q, c)
	s.record(q, c, err, began)
	if f, hit := c.hit.find(FaultTimeout, FaultCommitTimeout); hit {
		wait(r.Context(), time.Duration(f.Delay))
		panic(http.ErrAbortHandler) // closes the connection without an answer
	}
	s.reply(w, c, r.Host, result, err)
}

// do authenticates a call, lets it be hit, and runs it.
func (s *Server) do(q *request, c *call) (answer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	principal, err := s.authenticate(q)
	if err != nil {
		return nil, err
	}
	c.principal = principal
	product, found := apis()[q.version]
	if !found {
		return nil, bad("InvalidVersion", "Specified parameter Version %q is not valid.", q.version)
	}
	a, found := product.actions[q.action]
	if !found {
		return nil, notFound("InvalidApi.NotFound", "Specified api is not found, please check your url and method.")
	}
	if name := product.name + ":" + q.action; !s.permitted(name) {
		return nil, forbiddenByRAM(name)
	}
	c.hit = s.strike(q.action)
	if f, hit := c.hit.find(FaultError); hit {
		if f.Code == "Forbidden.RAM" {
			return nil, forbiddenByRAM(product.name + ":" + q.action)
		}
		return nil, f.err()
	}
	if _, hit := c.hit.find(FaultTimeout); hit {
		return nil, bad("Timeout", "an injected fault: no answer")
	}
	if _, hit := c.hit.find(FaultEmpty); hit {
		c.elsewhere = true
	}
	return s.run(a, c)
}

// permitted looks into the policy of all signed callers.
func (s *Server) permitted(name string) bool {
	allow := s.state.Settings.Allow
	for _, pattern := range allow {
		if match, _ := path.Match(pattern, name); match {
			return true
		}
	}
	return len(allow) == 0
}

// run takes the latency of a call, and the VPC for its writer. The caller
// holds the lock, which is let go while time passes.
func (s *Server) run(a action, c *call) (answer, error) {
	if region := c.params["RegionId"]; region != "" && region != s.spec.Region {
		if !knownRegion(region) {
			return nil, notFound("InvalidRegionId.NotFound", "The specified RegionId does not exist.")
		}
		c.elsewhere = true
	}
	c.page = cmp.Or(a.page, maxPage)
	if a.writes {
		if s.writing {
			return nil, taskConflict()
		}
		s.writing = true
		defer func() { s.writing = false }()
	}
	if latency := time.Duration(s.state.Settings.Latency); latency > 0 {
		s.mu.Unlock()
		wait(c.ctx, latency)
		s.mu.Lock()
	}
	s.settle(c.ctx)
	result, err := a.run(s, c)
	if a.writes && err == nil {
		s.settle(c.ctx) // a delay of 0 is over at once
		s.save()
	}
	return result, err
}

// wait returns after d or when ctx is done.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// reply writes the answer, or the error as the vendor words it.
func (s *Server) reply(w http.ResponseWriter, c *call, host string, result answer, err error) {
	status := http.StatusOK
	if err != nil {
		refused := asAPIError(err)
		status = refused.Status
		result = answer{
			"HostId": host, "Code": refused.Code, "Message": refused.Message,
			"Recommend": "https://api.aliyun.com/troubleshoot?q=" + refused.Code,
		}
		if refused.action != "" {
			result["AccessDeniedDetail"] = answer{
				"AuthAction": refused.action, "AuthPrincipalDisplayName": c.principal,
				"NoPermissionType": "ImplicitDeny", "PolicyType": "AccountLevelIdentityBasedPolicy",
			}
		}
		if f, hit := c.hit.find(FaultError); hit && f.RetryAfter > 0 {
			w.Header().Set("x-ratelimit-user-api", "Limit:1,Remain:0,TimeLeft:"+strconv.FormatInt(time.Duration(f.RetryAfter).Milliseconds(), 10))
		}
	}
	if result == nil {
		result = answer{}
	}
	result["RequestId"] = c.requestID
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.Header().Set("x-acs-request-id", c.requestID)
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(result); err != nil {
		s.log.Debug("client went away", "err", err)
	}
}

// newRequestID is an upper-case UUID.
func newRequestID() string {
	b := make([]byte, 16)
	rand.Read(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%X-%X-%X-%X-%X", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// knownRegion says whether a region exists, as far as clients are likely to
// confuse them.
func knownRegion(id string) bool {
	for _, r := range regions() {
		if r == id {
			return true
		}
	}
	return false
}

func regions() []string {
	return []string{"cn-beijing", "cn-chengdu", "cn-hangzhou", "cn-hongkong", "cn-qingdao", "cn-shanghai", "cn-shenzhen",
		"cn-zhangjiakou", "ap-southeast-1", "eu-central-1", "us-east-1", "us-west-1"}
}
