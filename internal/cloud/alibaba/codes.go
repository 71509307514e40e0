package alibaba

import (
	"strings"

	"ropeway.dev/ropeway/internal/cloud"
)

// codeClasses says what each error code means: of calls, and of one entry of a
// batch (those in capitals). Spellings are the API's, mistakes included, and
// case matters: InvalidCIDRBlock is a duplicate, InvalidCidrBlock a bad range.
// The codes are those of the pages of the actions that this package calls
// (Vpc 2016-04-28, Ecs 2014-05-26) and of what users have reported.
func codeClasses() map[string]cloud.Class {
	return map[string]cloud.Class{
		// Another change of the VPC is under way.
		"TaskConflict":                     cloud.Passing,
		"IncorrectRouteEntryStatus":        cloud.Passing,
		"IncorrcetRouteEntryStatus":        cloud.Passing,
		"IncorrectVpcStatus":               cloud.Passing,
		"IncorrectVSwitchStatus":           cloud.Passing,
		"IncorrectStatus.RouteTableStatus": cloud.Passing,
		"IncorrectStatus.VpcRouteEntry":    cloud.Passing,
		"OperationConflict":                cloud.Passing,
		"Operation.Conflict":               cloud.Passing,
		"OperationFailed.DistibuteLock":    cloud.Passing,
		"OperationFailed.DistributeLock":   cloud.Passing,
		"LastTokenProcessing":              cloud.Passing,
		"SystemBusy":                       cloud.Passing,
		"VPC_ROUTE_ENTRY_STATUS_ERROR":     cloud.Passing,
		// The instance is starting or stopping.
		"IncorrectInstanceStatus": cloud.Passing,
		// The same nonce twice: the next request has another.
		"SignatureNonceUsed": cloud.Passing,

		// The server does not say what it has done.
		"ServiceUnavailable": cloud.Lost,
		"InternalError":      cloud.Lost,
		"UnknownError":       cloud.Lost,

		"Throttling":                    cloud.Throttled,
		"Throttling.User":               cloud.Throttled,
		"Throttling.Api":                cloud.Throttled,
		"ServiceUnavailable.Throttling": cloud.Throttled,

		"QuotaExceeded":                  cloud.Quota,
		"VPC_ROUTE_ENTRY_QUOTA_EXCEEDED": cloud.Quota,

		"InvalidCIDRBlock.Duplicate":           cloud.Conflict,
		"RouterEntryConflict.Duplicated":       cloud.Conflict,
		"InvalidRouteEntry.Duplicate":          cloud.Conflict,
		"VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE": cloud.Conflict,
		// An entry to change that is gone: the next listing tells.
		"InvalidRouteEntry.NotFound":   cloud.Conflict,
		"InvalidRouteEntryId.NotFound": cloud.Conflict,
		"VPC_ROUTER_ENTRY_NOT_EXIST":   cloud.Conflict,

		"InvalidNextHop.NotFound":    cloud.BadNextHop,
		"InvalidNextHopId.NotFound":  cloud.BadNextHop,
		"InvalidInstanId.NotFound":   cloud.BadNextHop,
		"InvalidInstanceId.NotFound": cloud.BadNextHop,

		"Forbidden":             cloud.Forbidden,
		"Forbidden.RAM":         cloud.Forbidden,
		"Forbidden.SubUser":     cloud.Forbidden,
		"NoPermission":          cloud.Forbidden,
		"User.NoPermission":     cloud.Forbidden,
		"UnauthorizedOperation": cloud.Forbidden,

		"InvalidAccessKeyId.NotFound":  cloud.Unauthenticated,
		"InvalidAccessKeyId.Inactive":  cloud.Unauthenticated,
		"InvalidAccessKeyId":           cloud.Unauthenticated,
		"InvalidSecurityToken.Expired": cloud.Unauthenticated,
		"SignatureDoesNotMatch":        cloud.Unauthenticated,
		"IncompleteSignature":          cloud.Unauthenticated,
		"InvalidTimeStamp.Expired":     cloud.Unauthenticated,
		"MissingSecurityToken":         cloud.Unauthenticated,

		// Protected entries and tables are no matter of RAM.
		"Forbbiden":       cloud.Permanent,
		"OperationDenied": cloud.Permanent,
		"OperationDenied.DeleteManagedRouteEntry":    cloud.Permanent,
		"OperationDenied.RouteTableTypeNotPermitted": cloud.Permanent,
		"InvalidCidrBlock":                           cloud.Permanent,
		"InvalidCidrBlock.Malformed":                 cloud.Permanent,
		"InvalidCidrBlock.Overlapped":                cloud.Permanent,
		"InvalidRouteTableId.NotFound":               cloud.Permanent,
		"InvalidRouteTable.NotFound":                 cloud.Permanent,
		"InvalidVpcId.NotFound":                      cloud.Permanent,
		"IllegalParam.NextToken":                     cloud.Permanent,
		"IllegalParam.NextTokenExpired":              cloud.Permanent,
	}
}

// codeFamilies are the beginnings of codes that come in many kinds, longest
// first, for those that codeClasses does not have.
func codeFamilies() []codeFamily {
	return []codeFamily{
		{"Throttling", cloud.Throttled}, {"QuotaExceeded", cloud.Quota}, {"QuotaExceed", cloud.Quota},
		{"Forbidden", cloud.Forbidden}, {"NoPermission", cloud.Forbidden},
		{"InvalidAccessKeyId", cloud.Unauthenticated}, {"InvalidSecurityToken", cloud.Unauthenticated},
		{"InvalidTimeStamp", cloud.Unauthenticated}, {"Signature", cloud.Unauthenticated},
		{"IncorrectStatus", cloud.Passing}, {"OperationConflict", cloud.Passing}, {"TaskConflict", cloud.Passing},
		{"ServiceUnavailable", cloud.Lost}, {"InternalError", cloud.Lost},
	}
}

type codeFamily struct {
	prefix string
	class  cloud.Class
}

// classify says what an answer means; status is 0 for an entry of a batch. What
// nobody has seen yet counts as refused for good with a 4xx or as an entry, but
// as lost with a 5xx, where the change may have happened.
func classify(code string, status int) cloud.Class {
	if class, known := codeClasses()[code]; known {
		return class
	}
	for _, family := range codeFamilies() {
		if strings.HasPrefix(code, family.prefix) {
			return family.class
		}
	}
	switch {
	case status == 429:
		return cloud.Throttled
	case status >= 500:
		return cloud.Lost
	case strings.Contains(strings.ToUpper(code), "QUOTA"):
		return cloud.Quota
	}
	return cloud.Permanent
}
