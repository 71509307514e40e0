package podlink

import (
	"errors"
	"fmt"
	"strings"

	"ropeway.dev/ropeway/internal/cniwire"
)

// maxAlias is the most bytes that the kernel keeps (IFALIASZ, with its zero).
const maxAlias = 255

// aliasMark begins an alias of ours, with the version of its form.
const aliasMark = "ropeway1"

// none stands for an empty field.
const none = "-"

// ErrAliasTooLong: the names of the attachment do not fit into a link's alias.
var ErrAliasTooLong = fmt.Errorf("the names of the network, the container and the interface are together longer than the %d bytes of a link's alias: use a shorter network name", maxAlias)

// Alias returns the text that the host end carries, so that whose link it is
// can be read from the kernel when everything else is lost:
//
//	ropeway1 <network> <container id> <interface> <pod uid> <namespace>/<name>
//
// Fields are separated by one space; "-" stands for an unknown one. Where 255
// bytes do not hold all of it, the pod's namespace and name are left out, then
// its UID; the attachment is never cut, ErrAliasTooLong is returned instead.
func Alias(a cniwire.Attachment, p cniwire.Pod) (string, error) {
	for _, s := range []string{a.Network, a.ContainerID, a.IfName} {
		if s == "" || strings.ContainsAny(s, " \n\t") {
			return "", fmt.Errorf("%w: %q cannot be part of a link's alias", ErrInvalid, s)
		}
	}
	key := strings.Join([]string{aliasMark, a.Network, a.ContainerID, a.IfName}, " ")
	uid, name := none, none
	if p.UID != "" && !strings.ContainsAny(p.UID, " \n\t") {
		uid = p.UID
	}
	if p.Namespace != "" && p.Name != "" && !strings.ContainsAny(p.Namespace+p.Name, " \n\t/") {
		name = p.Namespace + "/" + p.Name
	}
	for _, try := range []string{key + " " + uid + " " + name, key + " " + uid + " " + none, key + " " + none + " " + none} {
		if len(try) <= maxAlias {
			return try, nil
		}
	}
	return "", ErrAliasTooLong
}

// ParseAlias reads what Alias wrote. Fields of a later form, at the end, are
// ignored. The error says that the alias is not one of ours.
func ParseAlias(alias string) (cniwire.Attachment, cniwire.Pod, error) {
	f := strings.Split(alias, " ")
	if len(f) < 6 || f[0] != aliasMark {
		return cniwire.Attachment{}, cniwire.Pod{}, fmt.Errorf("the link's alias %q is not ropeway's", alias)
	}
	a := cniwire.Attachment{Network: f[1], ContainerID: f[2], IfName: f[3]}
	if a.Network == "" || a.ContainerID == "" || a.IfName == "" {
		return cniwire.Attachment{}, cniwire.Pod{}, errors.New("the link's alias has empty fields: " + alias)
	}
	var p cniwire.Pod
	if f[4] != none {
		p.UID = f[4]
	}
	if namespace, name, ok := strings.Cut(f[5], "/"); ok {
		p.Namespace, p.Name = namespace, name
	}
	return a, p, nil
}
