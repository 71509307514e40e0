package journal

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"ropeway.dev/ropeway/internal/ipam"
)

// magic begins every journal.
const magic = "ropeway-journal "

// checksumDigits is the length of a line's checksum.
const checksumDigits = 8

// ErrLocked says that another process has the journal.
var ErrLocked = errors.New("another agent is running on this node and has the address journal: stop it first")

// VersionError says that a journal was written by a newer version, and where it
// was moved to.
type VersionError struct {
	Path    string
	MovedTo string
	Found   int
}

// Error implements error.
func (e *VersionError) Error() string {
	return fmt.Sprintf("the address journal %s has version %d, this agent reads up to %d, and it was moved to %s: the agent finds out anew which addresses are held",
		e.Path, e.Found, Version, e.MovedTo)
}

// CorruptError says that a journal is damaged, and where it was moved to.
type CorruptError struct {
	Path    string
	MovedTo string
	Line    int // the first one is 1
	Reason  string
	// Salvaged are the records of the lines that are whole, in order. They are
	// not all that was held, and some may have been freed since.
	Salvaged []ipam.Record
}

// Error implements error.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("the address journal %s is damaged in line %d (%s) and was moved to %s: the agent finds out anew which addresses are held; keep the file for a bug report",
		e.Path, e.Line, e.Reason, e.MovedTo)
}

// content is what a journal says.
type content struct {
	version int
	records []ipam.Record
	size    int64 // bytes of whole lines
}

func header() string { return fmt.Sprintf("%s%d\n", magic, Version) }

// format returns a record's line.
func format(r ipam.Record) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode a record for the address journal: %w", err)
	}
	return fmt.Appendf(nil, "%08x %s\n", checksum(body), body), nil
}

func checksum(body []byte) uint32 {
	return crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli))
}

// parse reads a journal. Its error is a *VersionError or a *CorruptError.
func parse(data []byte) (content, error) {
	end := bytes.LastIndexByte(data, '\n') + 1
	lines := bytes.Split(data[:end], []byte("\n"))
	lines = lines[:len(lines)-1] // behind the last newline there is nothing
	if len(lines) == 0 {
		return content{}, &CorruptError{Line: 1, Reason: "it has no first line"}
	}
	version, err := parseHeader(string(lines[0]))
	if err != nil {
		return content{}, err
	}
	c := content{version: version, size: int64(end)}
	var damage *CorruptError
	for i, line := range lines[1:] {
		r, err := parseLine(line)
		if err != nil {
			if damage == nil {
				damage = &CorruptError{Line: i + 2, Reason: err.Error()}
			}
			continue
		}
		c.records = append(c.records, r)
	}
	if damage != nil {
		damage.Salvaged = c.records
		return content{}, damage
	}
	return c, nil
}

func parseHeader(line string) (version int, err error) {
	digits, ok := strings.CutPrefix(line, magic)
	version, err = strconv.Atoi(digits)
	if !ok || err != nil || version < 1 || strconv.Itoa(version) != digits {
		return 0, &CorruptError{Line: 1, Reason: "it does not begin as a journal does"}
	}
	if version > Version {
		return 0, &VersionError{Found: version}
	}
	return version, nil
}

func parseLine(line []byte) (ipam.Record, error) {
	var r ipam.Record
	if len(line) <= checksumDigits || line[checksumDigits] != ' ' {
		return r, errors.New("it has no checksum")
	}
	var sum [checksumDigits / 2]byte
	if _, err := hex.Decode(sum[:], line[:checksumDigits]); err != nil {
		return r, errors.New("its checksum is no number")
	}
	body := line[checksumDigits+1:]
	want := uint32(sum[0])<<24 | uint32(sum[1])<<16 | uint32(sum[2])<<8 | uint32(sum[3])
	if checksum(body) != want {
		return r, errors.New("its checksum does not match")
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		return r, fmt.Errorf("it is no record: %w", err)
	}
	if r.Op != ipam.OpHold && r.Op != ipam.OpFree {
		return r, fmt.Errorf("it does %q", r.Op)
	}
	return r, nil
}
