package cniwire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
)

// Whatever arrives is answered or refused; nothing panics, and what is taken
// for a request is one.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{"version":1,"verb":"ADD","attachment":{"network":"n","containerID":"c","ifName":"eth0"},"addresses":["10.0.0.1"]}`,
		`{"version":1,"verb":"GC","attachment":{"network":"n"},"valid":[{"network":"n"}]}`,
		`{}`, `[]`, `null`, "\x00", `{"version":1e99}`, `{"version":1,"verb":"ADD","addresses":["fe80::1%eth0"]}`,
	} {
		f.Add([]byte(s + "\n"))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var req Request
		if err := readMessage(bytes.NewReader(line), &req); err != nil {
			return
		}
		if bad := req.Validate(); bad != nil {
			if bad.Msg == "" || bad.Code == 0 {
				t.Errorf("a refusal without words: %+v", bad)
			}
			return
		}
		again, err := json.Marshal(req)
		if err != nil {
			t.Fatalf("%q is taken and cannot be written: %v", line, err)
		}
		var back Request
		if err := readMessage(bytes.NewReader(append(again, '\n')), &back); err != nil || fmt.Sprint(back) != fmt.Sprint(req) {
			t.Errorf("%q becomes %+v, %v", again, back, err)
		}
	})
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte(`{"version":1,"addresses":["10.0.0.2"],"subnets":["10.0.0.0/24"],"gateways":["10.0.0.1"],"mtu":1450}` + "\n"))
	f.Add([]byte(`{"version":1,"error":{"code":11,"msg":"later"}}` + "\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		var resp Response
		if err := readMessage(bytes.NewReader(line), &resp); err == nil {
			_ = resp.failure()
		}
	})
}
