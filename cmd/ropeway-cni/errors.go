package main

import (
	"errors"
	"strings"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// coded gives err the code that the specification (1.1.0, section 5) has for
// it; the message stays the whole sentence.
func coded(err error) *types.Error {
	var spoken *types.Error
	if errors.As(err, &spoken) {
		if spoken.Error() == err.Error() && len(spoken.Msg) <= longest {
			return spoken
		}
		return types.NewError(spoken.Code, bounded(err.Error()), "")
	}
	return types.NewError(codeOf(err), bounded(err.Error()), "")
}

// longest is the length in bytes of a message that a runtime can still put into
// an event: what was wrong may be quoted in it, and may be of any length.
const longest = 4096

func bounded(message string) string {
	if len(message) <= longest {
		return message
	}
	return strings.ToValidUTF8(message[:longest/2], "") + " [...] " + strings.ToValidUTF8(message[len(message)-longest/4:], "")
}

func codeOf(err error) uint {
	var answered *cniwire.Error
	var unavailable *cniwire.UnavailableError
	var taken *podlink.TakenError
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EIO):
		return types.ErrIOFailure
	case errors.As(err, &answered):
		return answered.Code
	case errors.As(err, &unavailable):
		return cniwire.CodeTryAgainLater
	case errors.Is(err, podlink.ErrNoNetns), errors.Is(err, podlink.ErrHostNetns):
		return types.ErrInvalidNetNS
	case errors.Is(err, podlink.ErrInvalid), errors.Is(err, podlink.ErrAliasTooLong):
		return cniwire.CodeInvalidConfig
	case errors.Is(err, podlink.ErrExists), errors.Is(err, podlink.ErrInterfaceExists), errors.As(err, &taken):
		return cniwire.CodeMismatch
	}
	return cniwire.CodeInternal
}

// unavailable is coded for STATUS: what ADD would answer by "try again later", or
// not at all, means here that the plugin is not available (code 50).
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	if e := coded(err); e.Code == cniwire.CodeTryAgainLater {
		return types.NewError(cniwire.CodeNotAvailable, e.Msg, e.Details)
	}
	return err
}

// invalid is a configuration that cannot be served.
func invalid(sentence string) *types.Error {
	return types.NewError(cniwire.CodeInvalidConfig, sentence, "")
}
