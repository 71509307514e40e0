package openapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	vendor "github.com/alibabacloud-go/darabonba-openapi/v2/client"
	"github.com/alibabacloud-go/darabonba-openapi/v2/utils"
	"github.com/alibabacloud-go/tea/dara"
	"github.com/alibabacloud-go/tea/tea"
)

const (
	testTable = "vtb-test"
	testVPC   = "vpc-test"
	testGroup = "sg-test"
)

// testSpec has three instances, each in a vSwitch of its own, in both
// families; everything happens at once.
func testSpec() Spec {
	s := Spec{
		Region: "cn-chengdu", Account: "1000000000000001", VPC: testVPC,
		CIDRs:      []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fd00:192:168::/48")},
		RouteTable: testTable, SecurityGroup: testGroup,
		Allowed: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		Key:     AccessKey{ID: "LTAItest", Secret: "a secret"}, Role: "nodes",
		Settings: Settings{Quota: DefaultQuota, CredentialLife: Duration(time.Hour)},
	}
	for i, name := range []string{"a", "b", "c"} {
		v4, v6 := fmt.Sprintf("192.168.%d.1", i), fmt.Sprintf("fd00:192:168:%d::1", i)
		s.VSwitches = append(s.VSwitches, VSwitch{
			ID: "vsw-" + name, Zone: "cn-chengdu-" + name,
			CIDR: netip.MustParsePrefix(v4 + "/24").Masked(), IPv6CIDR: netip.MustParsePrefix(v6 + "/64").Masked(),
		})
		s.Instances = append(s.Instances, Instance{
			ID: "i-" + name, Host: name, Type: "ecs.g7.large", VSwitch: "vsw-" + name, Interface: "eni-" + name,
			MAC: "00:16:3e:00:00:0" + fmt.Sprint(i), Addresses: []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)},
			Status: "Running", Tags: map[string]string{"cluster": name},
		})
	}
	return s
}

// clock is real time plus what a test adds, since signatures must be fresh.
type clock struct {
	mu    sync.Mutex
	added time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.added)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.added += d
}

// fakeFabric remembers what it was given.
type fakeFabric struct {
	plane Plane
	sets  int
	first Plane
	err   error
}

func (f *fakeFabric) Set(_ context.Context, p Plane) error {
	if f.sets++; f.sets == 1 {
		f.first = p
	}
	if f.err == nil {
		f.plane = p
	}
	return f.err
}

// cloudUnderTest is a cloud that answers on a port of this machine.
type cloudUnderTest struct {
	*Server
	clock  *clock
	fabric *fakeFabric
	url    string
}

func newCloud(t *testing.T, change ...func(*Spec)) *cloudUnderTest {
	t.Helper()
	spec := testSpec()
	for _, c := range change {
		c(&spec)
	}
	c := &cloudUnderTest{clock: &clock{}, fabric: &fakeFabric{}}
	var err error
	if c.Server, err = New(spec, Options{Fabric: c.fabric, Now: c.clock.now}); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(c.Server)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// config is the vendor's client's for this cloud.
func (c *cloudUnderTest) config() *utils.Config {
	return &utils.Config{
		AccessKeyId: tea.String(c.spec.Key.ID), AccessKeySecret: tea.String(c.spec.Key.Secret), RegionId: tea.String(c.spec.Region),
		Endpoint: tea.String(strings.TrimPrefix(c.url, "http://")), Protocol: tea.String("http"),
	}
}

func versions() map[string]string {
	return map[string]string{"vpc": "2016-04-28", "ecs": "2014-05-26", "sts": "2015-04-01"}
}

// form is how a call of the vendor's client carries its parameters.
type form string

const (
	inQuery  form = "query" // signature version 3
	inBody   form = "form"  // signature version 3
	version1 form = "v1"    // signature version 1
)

// vendorCall calls by the vendor's own client and returns the body.
func (c *cloudUnderTest) vendorCall(config *utils.Config, how form, product, action string, parameters map[string]string) (map[string]any, error) {
	client, err := vendor.NewClient(config)
	if err != nil {
		return nil, err
	}
	request := &utils.OpenApiRequest{}
	values := map[string]*string{"RegionId": tea.String(c.spec.Region)}
	for name, value := range parameters {
		values[name] = tea.String(value)
	}
	runtime := &dara.RuntimeOptions{Autoretry: tea.Bool(false)}
	if how == version1 {
		request.Query = values
		result, err := client.DoRPCRequest(tea.String(action), tea.String(versions()[product]), tea.String("http"), tea.String("POST"),
			tea.String("AK"), tea.String("json"), request, runtime)
		return bodyOf(result), err
	}
	if how == inBody {
		body := map[string]any{}
		for name, value := range values {
			body[name] = *value
		}
		request.Body = body
	} else {
		request.Query = values
	}
	result, err := client.CallApi(&utils.Params{
		Action: tea.String(action), Version: tea.String(versions()[product]), Protocol: tea.String("http"), Pathname: tea.String("/"),
		Method: tea.String("POST"), AuthType: tea.String("AK"), Style: tea.String("RPC"),
		ReqBodyType: tea.String("formData"), BodyType: tea.String("json"),
	}, request, runtime)
	return bodyOf(result), err
}

func bodyOf(result map[string]any) map[string]any {
	body, _ := result["body"].(map[string]any)
	return body
}

// code is the error code that the vendor's client found in an answer.
func code(err error) string {
	var coded interface{ GetCode() *string }
	if errors.As(err, &coded) {
		return tea.StringValue(coded.GetCode())
	}
	var old *tea.SDKError
	if errors.As(err, &old) {
		return tea.StringValue(old.Code)
	}
	return fmt.Sprint(err)
}

func (c *cloudUnderTest) call(product, action string, parameters map[string]string) (map[string]any, error) {
	return c.vendorCall(c.config(), inQuery, product, action, parameters)
}

// create makes an entry and returns the error code, if any.
func (c *cloudUnderTest) create(dst, hop string) string {
	_, err := c.call("vpc", "CreateRouteEntry", map[string]string{"RouteTableId": testTable, "DestinationCidrBlock": dst, "NextHopId": hop, "NextHopType": "Instance"})
	if err != nil {
		return code(err)
	}
	return ""
}

// door asks the back door.
func (c *cloudUnderTest) door(t *testing.T, method, path string, body, into any) (status int) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	c.Admin().ServeHTTP(w, httptest.NewRequest(method, path, bytes.NewReader(text)))
	if into != nil && w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			t.Fatal(err)
		}
	}
	return w.Code
}

func (c *cloudUnderTest) fault(t *testing.T, f Fault) {
	t.Helper()
	if status := c.door(t, http.MethodPost, "/faults", f, nil); status != http.StatusOK {
		t.Fatalf("fault %+v: %d", f, status)
	}
}

// rows words a list of an answer: of each element the fields asked for.
func rows(value any, fields []string) []string {
	switch v := value.(type) {
	case []any:
		var out []string
		for _, element := range v {
			object, isObject := element.(map[string]any)
			if !isObject {
				return nil
			}
			var words []string
			for _, f := range fields {
				words = append(words, fmt.Sprint(object[f]))
			}
			out = append(out, strings.Join(words, " "))
		}
		return out
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if out := rows(v[name], fields); out != nil {
				return out
			}
		}
	}
	return nil
}
