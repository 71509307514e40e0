package openapi

import (
	"fmt"
	"net/http"
)

// apiError is an answer that is a refusal: status, code and message are part
// of the API, spelling mistakes of the vendor's included.
type apiError struct {
	Status  int
	Code    string
	Message string
	// action is set where RAM refused it.
	action string
}

func (e *apiError) Error() string {
	return fmt.Sprintf("%s (HTTP %d): %s", e.Code, e.Status, e.Message)
}

func refuse(status int, code, format string, args ...any) *apiError {
	return &apiError{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

func bad(code, format string, args ...any) *apiError {
	return refuse(http.StatusBadRequest, code, format, args...)
}

func notFound(code, format string, args ...any) *apiError {
	return refuse(http.StatusNotFound, code, format, args...)
}

func missing(parameter string) *apiError {
	return bad("MissingParameter", "The input parameter %q that is mandatory for processing this request is not supplied.", parameter)
}

// taskConflict is the answer to whoever writes to a VPC that has its writer.
func taskConflict() *apiError {
	return refuse(http.StatusConflict, "TaskConflict", "The operation is too frequent. Please wait a moment and try again.")
}

func forbiddenByRAM(action string) *apiError {
	e := refuse(http.StatusForbidden, "Forbidden.RAM", "User not authorized to operate on the specified resource, or this API doesn't support RAM.")
	e.action = action
	return e
}

// knownCode are status and message of codes that faults are injected with: code
// -> its error. Throttling's status is 400 on most pages.
func knownCode(code string) *apiError {
	switch code {
	case "Throttling":
		return bad(code, "Request was denied due to request throttling.")
	case "Throttling.User":
		return bad(code, "Request was denied due to user flow control.")
	case "Throttling.Api":
		return bad(code, "Request was denied due to api flow control.")
	case "ServiceUnavailable":
		return refuse(http.StatusServiceUnavailable, code, "The request has failed due to a temporary failure of the server.")
	case "InternalError":
		return refuse(http.StatusInternalServerError, code, "The request processing has failed due to some unknown error.")
	case "SystemBusy":
		return bad(code, "The system is busy.")
	case "Forbidden.RAM":
		return forbiddenByRAM("")
	case "TaskConflict":
		return taskConflict()
	}
	return bad(code, "The request was refused by an injected fault.")
}
