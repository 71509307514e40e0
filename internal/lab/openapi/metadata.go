package openapi

import (
	"crypto/rand"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Paths and headers of the metadata service. A token (IMDSv2) is got by PUT
// and shown in a header.
const (
	metadataRoot     = "/latest/"
	tokenPath        = "/latest/api/token"
	metadataPath     = "/latest/meta-data/"
	identityPath     = "/latest/dynamic/instance-identity/document"
	headerTokenLife  = "X-aliyun-ecs-metadata-token-ttl-seconds"
	headerToken      = "X-aliyun-ecs-metadata-token"
	longestTokenLife = 21600
)

// session is a token of the metadata service.
type session struct {
	instance string
	until    time.Time
}

// serveMetadata answers an instance, which is known by its address: nobody
// else's packets carry it.
func (s *Server) serveMetadata(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in, found := s.asking(r)
	if !found {
		http.Error(w, "no instance has this address", http.StatusNotFound)
		return
	}
	if r.URL.Path == tokenPath {
		s.issueToken(w, r, in)
		return
	}
	if !s.tokenHolds(r, in) {
		http.Error(w, "the token is missing, wrong or expired", http.StatusForbidden)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	text, found := s.metadata(r.URL.Path, in)
	if !found {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	if _, err := w.Write([]byte(text)); err != nil {
		return // the client went away
	}
}

// asking finds the instance that a request comes from.
func (s *Server) asking(r *http.Request) (Instance, bool) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return Instance{}, false
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return Instance{}, false
	}
	in, found := s.state.instanceAt(address.Unmap())
	if !found {
		return Instance{}, false
	}
	return *in, true
}

func (s *Server) issueToken(w http.ResponseWriter, r *http.Request, in Instance) {
	life, err := strconv.Atoi(r.Header.Get(headerTokenLife))
	switch {
	case r.Method != http.MethodPut:
		http.Error(w, "only PUT", http.StatusMethodNotAllowed)
	// A token must not leave through a proxy that a pod talked into it.
	case r.Header.Get("X-Forwarded-For") != "":
		http.Error(w, "not through a proxy", http.StatusForbidden)
	case err != nil || life < 1 || life > longestTokenLife:
		http.Error(w, headerTokenLife+" must be 1 to 21600", http.StatusBadRequest)
	default:
		token := rand.Text()
		s.sessions[token] = session{instance: in.ID, until: s.now().Add(time.Duration(life) * time.Second)}
		w.Header().Set(headerTokenLife, strconv.Itoa(life))
		if _, err := w.Write([]byte(token)); err != nil {
			delete(s.sessions, token)
		}
	}
}

func (s *Server) tokenHolds(r *http.Request, in Instance) bool {
	token := r.Header.Get(headerToken)
	if token == "" {
		return !s.state.Settings.TokenRequired
	}
	known, found := s.sessions[token]
	return found && known.instance == in.ID && s.now().Before(known.until)
}

// metadata is the text at a path.
func (s *Server) metadata(path string, in Instance) (string, bool) {
	if path == identityPath {
		return s.identityDocument(in), true
	}
	key, found := strings.CutPrefix(path, metadataPath)
	if !found {
		return "", false
	}
	key = strings.TrimSuffix(key, "/")
	if below, found := strings.CutPrefix(key, "ram/security-credentials"); found {
		return s.roleMetadata(strings.TrimPrefix(below, "/"), in)
	}
	items := s.items(in)
	if text, found := items[key]; found {
		return text, true
	}
	return listing(items, key)
}

// items are the leaves of an instance's metadata: key -> text.
func (s *Server) items(in Instance) map[string]string {
	v4, v6 := in.byFamily()
	items := map[string]string{
		"instance-id": in.ID, "hostname": in.Host, "mac": in.MAC, "region-id": s.spec.Region, "zone-id": s.zone(in),
		"vpc-id": s.spec.VPC, "vswitch-id": in.VSwitch, "owner-account-id": s.spec.Account, "network-type": "vpc",
		"instance/instance-type": in.Type, "instance/instance-name": in.Host,
	}
	interfaces := "network/interfaces/macs/" + in.MAC + "/"
	items[interfaces+"network-interface-id"] = in.Interface
	items[interfaces+"vswitch-id"], items[interfaces+"vpc-id"] = in.VSwitch, s.spec.VPC
	if len(v4) > 0 {
		items["private-ipv4"], items[interfaces+"primary-ip-address"] = v4[0], v4[0]
	}
	if len(v6) > 0 {
		items[interfaces+"ipv6s"] = "[" + strings.Join(v6, ", ") + "]"
	}
	for _, v := range s.spec.VSwitches {
		if v.ID == in.VSwitch && v.CIDR.IsValid() {
			items["vswitch-cidr-block"] = v.CIDR.String()
		}
	}
	for _, cidr := range s.spec.CIDRs {
		if cidr.Addr().Is4() && items["vpc-cidr-block"] == "" {
			items["vpc-cidr-block"] = cidr.String()
		}
	}
	return items
}

// listing lists what is directly below a key, directories with a slash.
func listing(items map[string]string, key string) (string, bool) {
	if key != "" {
		key += "/"
	}
	var names []string
	for item := range items {
		rest, found := strings.CutPrefix(item, key)
		if !found {
			continue
		}
		name, _, deeper := strings.Cut(rest, "/")
		if deeper {
			name += "/"
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if key == "" {
		names = append(names, "ram/")
	}
	slices.Sort(names)
	return strings.Join(names, "\n"), len(names) > 0
}

func (s *Server) identityDocument(in Instance) string {
	items := s.items(in)
	text, err := json.Marshal(map[string]string{
		"instance-id": in.ID, "region-id": s.spec.Region, "zone-id": s.zone(in), "instance-type": in.Type, "mac": in.MAC,
		"owner-account-id": s.spec.Account, "private-ipv4": items["private-ipv4"],
	})
	if err != nil {
		return "" // a map of strings always encodes
	}
	return string(text)
}

// roleMetadata is the role's name, or credentials for it.
func (s *Server) roleMetadata(role string, in Instance) (string, bool) {
	if s.spec.Role == "" || s.state.Settings.RoleDetached {
		return "", false
	}
	if role == "" {
		return s.spec.Role, true
	}
	if role != s.spec.Role {
		return "", false
	}
	given := s.issue(in)
	text, err := json.MarshalIndent(map[string]string{
		"AccessKeyId": given.AccessKeyID, "AccessKeySecret": given.AccessKeySecret, "SecurityToken": given.SecurityToken,
		"Expiration": gmt(given.Expiration), "LastUpdated": gmt(given.At), "Code": "Success",
	}, "", "  ")
	if err != nil {
		return "", false
	}
	return string(text), true
}

// issue returns credentials for an instance: the last ones while they have
// half of their life left, like the real service, or new ones.
func (s *Server) issue(in Instance) issued {
	now, life := s.now().UTC().Truncate(time.Second), time.Duration(s.state.Settings.CredentialLife)
	s.state.Issued = slices.DeleteFunc(s.state.Issued, func(i issued) bool { return now.Sub(i.Expiration) > clockSkew })
	for _, i := range s.state.Issued {
		if i.Instance == in.ID && i.Expiration.Sub(now) > life/2 {
			return i
		}
	}
	given := issued{
		Instance: in.ID, AccessKeyID: "STS." + rand.Text(), AccessKeySecret: rand.Text(), SecurityToken: "CAIS" + rand.Text() + rand.Text(),
		At: now, Expiration: now.Add(life),
	}
	s.state.Issued = append(s.state.Issued, given)
	s.save()
	return given
}
