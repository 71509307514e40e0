package vendorccm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"ropeway.dev/ropeway/internal/lab/openapi"
)

// Cloud says where the cloud is and with which keys it is called.
type Cloud struct {
	URL    string // of the OpenAPI
	Region string
	VPC    string
	Key    openapi.AccessKey
	Tables []string // routeTableIDs of the cloud-config; empty: the VPC must have exactly one
}

// apiError is a refusal of the API.
type apiError struct{ Code, Message string }

func (e *apiError) Error() string { return e.Code + ": " + e.Message }

// call makes one signed call. It is tried once: neither throttling nor a 5xx is
// answered by another try.
func (c Cloud) call(ctx context.Context, action string, parameters map[string]string, into any) error {
	nonce := make([]byte, 16)
	rand.Read(nonce)
	q := url.Values{
		"Action": {action}, "Version": {"2016-04-28"}, "Format": {"JSON"}, "RegionId": {c.Region}, "AccessKeyId": {c.Key.ID},
		"SignatureMethod": {"HMAC-SHA1"}, "SignatureVersion": {"1.0"}, "SignatureNonce": {hex.EncodeToString(nonce)},
		"Timestamp": {time.Now().UTC().Format("2006-01-02T15:04:05Z")},
	}
	for name, value := range parameters {
		q.Set(name, value)
	}
	q.Set("Signature", openapi.SignV1(http.MethodPost, q, c.Key.Secret))
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+"/?"+q.Encode(), http.NoBody)
	if err != nil {
		return fmt.Errorf("call %s: %w", action, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("call %s: %w", action, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("call %s: %w", action, err)
	}
	if resp.StatusCode != http.StatusOK {
		refused := &apiError{}
		if err := json.Unmarshal(text, refused); err != nil {
			return fmt.Errorf("call %s: status %d", action, resp.StatusCode)
		}
		return fmt.Errorf("call %s: %w", action, refused)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read the answer to %s: %w", action, err)
	}
	return nil
}

// tables returns the route tables to write. Without configured ones the VPC
// must have exactly one, of whatever kind.
func (c Cloud) tables(ctx context.Context) ([]string, error) {
	if len(c.Tables) > 0 {
		return c.Tables, nil
	}
	var answer struct {
		RouterTableList struct {
			RouterTableListType []struct{ RouteTableId string }
		} //nolint:revive // the API's name
	}
	if err := c.call(ctx, "DescribeRouteTableList", map[string]string{"VpcId": c.VPC}, &answer); err != nil {
		return nil, err
	}
	found := answer.RouterTableList.RouterTableListType
	if len(found) != 1 {
		return nil, fmt.Errorf("alicloud: multiple route tables or no route table found in vpc %s, %d", c.VPC, len(found))
	}
	return []string{found[0].RouteTableId}, nil
}

// entry is a custom entry that counts as the controller's own.
type entry struct{ table, dst, instance string }

// entries lists what leads to one instance, in one table.
func (c Cloud) entries(ctx context.Context, table string) ([]entry, error) {
	var out []entry
	for token := ""; ; {
		parameters := map[string]string{"RouteTableId": table, "RouteEntryType": "Custom", "MaxResult": "100"}
		if token != "" {
			parameters["NextToken"] = token
		}
		var answer struct {
			NextToken   string
			RouteEntrys struct {
				RouteEntry []struct {
					DestinationCidrBlock string
					NextHops             struct {
						NextHop []struct{ NextHopId, NextHopType string } //nolint:revive // the API's names
					}
				}
			}
		}
		if err := c.call(ctx, "DescribeRouteEntryList", parameters, &answer); err != nil {
			return nil, err
		}
		for _, e := range answer.RouteEntrys.RouteEntry {
			if hops := e.NextHops.NextHop; len(hops) == 1 && hops[0].NextHopType == "Instance" && e.DestinationCidrBlock != "0.0.0.0/0" {
				out = append(out, entry{table: table, dst: e.DestinationCidrBlock, instance: hops[0].NextHopId})
			}
		}
		if token = answer.NextToken; token == "" {
			return out, nil
		}
	}
}

// batch sends entries by CreateRouteEntries or DeleteRouteEntries, and returns
// the codes of those that failed, by next hop alone: two entries that lead to
// one instance are not told apart.
func (c Cloud) batch(ctx context.Context, action string, entries []entry) (failed map[string]string, err error) {
	parameters := map[string]string{}
	for i, e := range entries {
		at := "RouteEntries." + strconv.Itoa(i+1) + "."
		parameters[at+"RouteTableId"], parameters[at+"DstCidrBlock"], parameters[at+"NextHop"] = e.table, e.dst, e.instance
		if action == "CreateRouteEntries" {
			parameters[at+"NextHopType"] = "Instance"
		}
	}
	var answer struct {
		FailedRouteEntries []struct{ NextHop, FailedCode string }
	}
	if err := c.call(ctx, action, parameters, &answer); err != nil {
		return nil, err
	}
	failed = map[string]string{}
	for _, f := range answer.FailedRouteEntries {
		failed[f.NextHop] = f.FailedCode
	}
	return failed, nil
}

// one makes or deletes a single entry.
func (c Cloud) one(ctx context.Context, action string, e entry) error {
	parameters := map[string]string{"RouteTableId": e.table, "DestinationCidrBlock": e.dst, "NextHopId": e.instance}
	if action == "CreateRouteEntry" {
		parameters["NextHopType"] = "Instance"
	}
	var answer struct{}
	return c.call(ctx, action, parameters, &answer)
}
