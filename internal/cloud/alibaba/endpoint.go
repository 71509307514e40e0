package alibaba

import (
	"fmt"
	"net/url"
	"strings"
)

// product is one of the cloud's APIs.
type product struct {
	name    string // as its endpoint and RAM spell it
	version string
}

func vpcAPI() product { return product{"vpc", "2016-04-28"} }
func ecsAPI() product { return product{"ecs", "2014-05-26"} }

// endpoint is where a product answers.
type endpoint struct {
	protocol string // http or https
	host     string // with its port, if any
}

// publicEndpoint is the override with which the products are reached from outside
// the VPC.
const publicEndpoint = "{product}.{region}.aliyuncs.com"

// endpointOf returns a product's endpoint: the override of spec.cloud.endpoint,
// in which {product} and {region} stand for their names, or the one that is
// reached inside the VPC, without any way to the outside.
func endpointOf(p product, region, override string) (endpoint, error) {
	if override == "" {
		return endpoint{"https", fmt.Sprintf("%s-vpc.%s.aliyuncs.com", p.name, region)}, nil
	}
	text := strings.NewReplacer("{product}", p.name, "{region}", region).Replace(override)
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return endpoint{}, fmt.Errorf("spec.cloud.endpoint %q: %w", override, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return endpoint{}, fmt.Errorf("spec.cloud.endpoint %q is not http(s)://HOST[:PORT]: give no path, query or user", override)
	}
	return endpoint{u.Scheme, u.Host}, nil
}
