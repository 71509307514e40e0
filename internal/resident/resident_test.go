package resident

import (
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

func TestOwnMappings(t *testing.T) {
	const maps = `00400000-01c00000 r-xp 00000000 08:01 42 /usr/bin/ropeway
01c00000-03000000 r--p 01800000 08:01 42 /usr/bin/ropeway
03000000-03100000 rw-p 02c00000 08:01 42 /usr/bin/ropeway
03100000-03200000 r--s 02c00000 08:01 42 /usr/bin/ropeway
c000000000-c000400000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 r-xp 00000000 08:01 7 /usr/lib/libc.so
`
	want := []mapping{{0x400000, 0x1c00000}, {0x1c00000, 0x3000000}}
	if got := ownMappings([]byte(maps), "/usr/bin/ropeway"); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestForget: pages go, and the program goes on with all that it needs of them.
func TestForget(t *testing.T) {
	before := filePages(t)
	if err := Forget(); err != nil {
		t.Fatal(err)
	}
	after := filePages(t)
	if after >= before {
		t.Errorf("%d KiB of the file are resident, %d before", after, before)
	}
}

// TestOfFiles: what is looked at is what Forget makes smaller.
func TestOfFiles(t *testing.T) {
	before := ofFiles()
	if err := Forget(); err != nil {
		t.Fatal(err)
	}
	if after := ofFiles(); before == 0 || after >= before {
		t.Errorf("%d bytes of files are resident, %d before", after, before)
	}
}

func filePages(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib
}
