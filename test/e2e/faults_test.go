//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/openapi"
)

// Versions of the cloud's products.
const (
	ecsVersion = "2014-05-26"
	vpcVersion = "2016-04-28"
)

// faultsAreNamed breaks, by the cloud's console, what only a cloud has, and waits
// until doctor names the very thing; then it is mended, and doctor finds nothing.
// The lab is in the routed mode with a tunnel behind it.
func faultsAreNamed(t *testing.T, l *lab.Lab) {
	console, err := l.Cloud()
	if err != nil {
		t.Fatal(err)
	}
	before, err := console.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	call := func(version, action string, params map[string]string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error { // another change may be under way
			_, err := console.Call(t.Context(), version, action, params)
			return err
		})
	}
	host := func(node string) openapi.Instance {
		i := slices.IndexFunc(before.Instances, func(in openapi.Instance) bool { return in.Host == node })
		if i < 0 {
			t.Fatalf("the cloud has no instance for %s", node)
		}
		return before.Instances[i]
	}
	victim, other := host(l.Nodes()[0].Name), host(l.Nodes()[1].Name)
	at := slices.IndexFunc(before.Entries, func(e openapi.Entry) bool { return e.NextHop == victim.ID })
	if at < 0 {
		t.Fatalf("no route leads to %s: %+v", victim.ID, before.Entries)
	}
	table, dst := before.Entries[at].Table, before.Entries[at].Dst.String()
	doctorSays(t, l, "paths", "no fault")

	check := func(on string) {
		call(ecsVersion, "ModifyNetworkInterfaceAttribute", map[string]string{"NetworkInterfaceId": victim.Interface, "SourceDestCheck": on})
	}
	check("true")
	doctorSays(t, l, "SourceDestCheck", victim.Interface)
	check("false")
	doctorSays(t, l, "paths", "no fault")

	pods := kubectl(t, l, "get", "clusternetwork", "default", "-o", "jsonpath={.spec.podCIDRs[0]}")
	rule := map[string]string{"SecurityGroupId": before.Spec.SecurityGroup, "IpProtocol": "all", "PortRange": "-1/-1", "SourceCidrIp": pods}
	call(ecsVersion, "RevokeSecurityGroup", rule)
	doctorSays(t, l, "PodCIDRNotAllowed", before.Spec.SecurityGroup+" of instance", "does not allow inbound from "+pods)
	call(ecsVersion, "AuthorizeSecurityGroup", rule)
	doctorSays(t, l, "paths", "no fault")

	// While the cloud is busy, Ropeway cannot publish the route again.
	if _, err := console.Inject(t.Context(), openapi.Fault{Kind: openapi.FaultError, Action: "CreateRouteEntr*", Code: "SystemBusy"}); err != nil {
		t.Fatal(err)
	}
	call(vpcVersion, "DeleteRouteEntry", map[string]string{"RouteTableId": table, "DestinationCidrBlock": dst, "NextHopId": victim.ID})
	doctorSays(t, l, "RouteMissing", table, dst)
	call(vpcVersion, "CreateRouteEntry", map[string]string{"RouteTableId": table, "DestinationCidrBlock": dst, "NextHopId": other.ID, "NextHopType": "Instance"})
	doctorSays(t, l, "WrongNextHop", table, dst, other.ID)
	call(vpcVersion, "DeleteRouteEntry", map[string]string{"RouteTableId": table, "DestinationCidrBlock": dst, "NextHopId": other.ID})
	if err := console.ClearFaults(t.Context()); err != nil {
		t.Fatal(err)
	}
	doctorSays(t, l, "paths", "no fault")
}

// doctorSays waits until doctor has a check of that name whose message has all
// the words. Its exit code tells of every name but that of a check that is well.
func doctorSays(t *testing.T, l *lab.Lab, name string, words ...string) {
	t.Helper()
	began := time.Now()
	defer func() {
		t.Logf("%s was named %.1f s after it was there to be seen", name, time.Since(began).Seconds())
	}()
	eventually(t, 90*time.Second, func() error {
		out, err := ropeway(t, l, "doctor", "-o", "json")
		var d struct {
			Checks []struct{ Name, Outcome, Message, Remedy string }
		}
		if err := json.NewDecoder(strings.NewReader(out)).Decode(&d); err != nil {
			return fmt.Errorf("doctor says %s (%w)", out, err)
		}
		for _, c := range d.Checks {
			missing := slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(c.Message, word) })
			switch {
			case c.Name != name || missing:
			case c.Outcome != "ok" && (err == nil || c.Remedy == ""):
				return fmt.Errorf("doctor ends with %v, and its remedy is %q", err, c.Remedy)
			default:
				return nil
			}
		}
		return fmt.Errorf("doctor does not say %s of %s: %s", name, strings.Join(words, ", "), out)
	})
}
