package openapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// maxBody bounds a request; 50 entries in a form are some 10 KiB.
const maxBody = 1 << 20

// params are the parameters of a call: name -> value, from the query and, over
// it, from the form.
type params map[string]string

// request is a call as it came in.
type request struct {
	http    *http.Request
	query   url.Values
	form    url.Values
	body    []byte
	params  params
	action  string
	version string
}

// parseRequest reads an RPC call. With signature version 3 action and version
// come in headers, with version 1 among the parameters.
func parseRequest(r *http.Request) (*request, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	if len(body) > maxBody {
		return nil, refuse(http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "The request is larger than %d bytes.", maxBody)
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, bad("InvalidParameter", "The query is not valid: %v", err)
	}
	q := &request{http: r, query: query, body: body, params: params{}}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		if q.form, err = url.ParseQuery(string(body)); err != nil {
			return nil, bad("InvalidParameter", "The form is not valid: %v", err)
		}
	}
	for _, values := range []url.Values{query, q.form} {
		for name, value := range values {
			q.params[name] = value[0]
		}
	}
	q.action = first(r.Header.Get("x-acs-action"), q.params["Action"])
	q.version = first(r.Header.Get("x-acs-version"), q.params["Version"])
	return q, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// need returns a parameter that must be there.
func (p params) need(name string) (string, error) {
	if p[name] == "" {
		return "", missing(name)
	}
	return p[name], nil
}

// number reads a parameter between two bounds. Below them, or no number, is an
// error; above, it is clamped, as the pages of the vendor's lists put it.
func (p params) number(name string, otherwise, least, most int) (int, error) {
	if p[name] == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(p[name])
	if err != nil || n < least {
		return 0, bad("InvalidParameter", "The specified parameter %q is not valid.", name)
	}
	return min(n, most), nil
}

// flag reads a Boolean parameter.
func (p params) flag(name string) (bool, error) {
	switch strings.ToLower(p[name]) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, bad("InvalidParameter", "The specified parameter %q is not valid.", name)
}

// list reads a repeated parameter Name.1, Name.2, ...
func (p params) list(name string) []string {
	var values []string
	for i := 1; ; i++ {
		v, found := p[name+"."+strconv.Itoa(i)]
		if !found {
			return values
		}
		values = append(values, v)
	}
}

// objects reads a repeated structure: Name.1.Field, Name.2.Field, ...
func (p params) objects(name string) []params {
	byIndex := map[int]params{}
	for key, value := range p {
		rest, found := strings.CutPrefix(key, name+".")
		if !found {
			continue
		}
		number, field, _ := strings.Cut(rest, ".")
		i, err := strconv.Atoi(number)
		if err != nil || i < 1 {
			continue
		}
		if byIndex[i] == nil {
			byIndex[i] = params{}
		}
		byIndex[i][field] = value
	}
	var all []params
	for i := 1; byIndex[i] != nil; i++ {
		all = append(all, byIndex[i])
	}
	return all
}

// jsonList reads a parameter that is a JSON list of strings; nil when absent.
func (p params) jsonList(name string) ([]string, error) {
	if p[name] == "" {
		return nil, nil
	}
	var values []string
	if err := json.Unmarshal([]byte(p[name]), &values); err != nil {
		return nil, bad("InvalidParameter", "The specified parameter %q is not a valid JSON array.", name)
	}
	if len(values) > maxPage {
		return nil, bad("InvalidParameter", "The specified parameter %q has more than %d values.", name, maxPage)
	}
	return values, nil
}

// maxPage is the largest page of a list that has no other, and the longest list of
// ids.
const maxPage = 100

// page is a part of a list, by token or by number.
type page struct {
	from, size int
	number     int // 0: by token
}

// tokenPage reads paging by token; the size's name differs from API to API.
func (p params) tokenPage(sizeName string) (page, error) {
	size, err := p.number(sizeName, 10, 1, maxPage)
	if err != nil {
		return page{}, err
	}
	from := 0
	if token := p["NextToken"]; token != "" {
		n, err := strconv.ParseUint(strings.TrimPrefix(token, tokenPrefix), 36, 31)
		if err != nil || !strings.HasPrefix(token, tokenPrefix) {
			return page{}, bad("IllegalParam.NextToken", "The specified NextToken is not valid.")
		}
		from = int(n)
	}
	return page{from: from, size: size}, nil
}

const tokenPrefix = "lab"

// numberPage reads paging by number, with most on a page.
func (p params) numberPage(most int) (page, error) {
	size, err := p.number("PageSize", 10, 1, most)
	if err != nil {
		return page{}, err
	}
	number, err := p.number("PageNumber", 1, 1, 1<<20)
	if err != nil {
		return page{}, err
	}
	return page{from: (number - 1) * size, size: size, number: number}, nil
}

// cut returns the page of a list and the token of the next one.
func cut[T any](all []T, p page) (part []T, next string) {
	from := min(p.from, len(all))
	to := min(from+p.size, len(all))
	if to < len(all) {
		next = tokenPrefix + strconv.FormatInt(int64(to), 36)
	}
	return all[from:to:to], next
}

// asAPIError is how any error looks to a client.
func asAPIError(err error) *apiError {
	var refused *apiError
	if errors.As(err, &refused) {
		return refused
	}
	return refuse(http.StatusInternalServerError, "InternalError", "%v", err)
}
