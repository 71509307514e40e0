package pidone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// probeTimeout bounds one question.
const probeTimeout = 2 * time.Second

// ask returns nil when the program is ready.
func (p Probe) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	switch {
	case p.Unix != "":
		return dialUnix(ctx, p.Unix)
	case p.URL != "":
		return p.get(ctx)
	}
	return errors.New("a probe names neither a socket nor a URL")
}

func dialUnix(ctx context.Context, path string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("ask whether a program is ready: %w", err)
	}
	return conn.Close()
}

func (p Probe) get(ctx context.Context) error {
	config, err := p.tls()
	if err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
	if err != nil {
		return fmt.Errorf("ask whether a program is ready: %w", err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("ask whether a program is ready: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("ask whether a program is ready: %s answers %s", p.URL, response.Status)
	}
	return nil
}

func (p Probe) tls() (*tls.Config, error) {
	// Health ports of the controller-manager and the scheduler make their own
	// certificates; what is asked of them is no secret.
	config := &tls.Config{InsecureSkipVerify: p.Authority == ""}
	if p.Authority != "" {
		data, err := os.ReadFile(p.Authority)
		if err != nil {
			return nil, fmt.Errorf("read the authority of a probe: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("read the authority of a probe: %s holds no certificate", p.Authority)
		}
	}
	if p.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(p.Certificate, p.Key)
		if err != nil {
			return nil, fmt.Errorf("read the client certificate of a probe: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
