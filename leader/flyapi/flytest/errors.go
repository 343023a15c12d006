package flytest

import (
	"fmt"
	"net/http"
)

// apiError is an error answer of the API.
type apiError struct {
	code int
	text string
}

func (e *apiError) Error() string { return fmt.Sprintf("%d: %s", e.code, e.text) }

func failf(code int, format string, args ...any) *apiError {
	return &apiError{code: code, text: fmt.Sprintf(format, args...)}
}

func notFound(text string) *apiError { return &apiError{code: http.StatusNotFound, text: text} }

func preconditionf(format string, args ...any) *apiError {
	return failf(http.StatusPreconditionFailed, "failed_precondition: "+format, args...)
}

func abortedf(format string, args ...any) *apiError {
	return failf(http.StatusConflict, "aborted: "+format, args...)
}
