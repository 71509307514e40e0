package openapi

import "strings"

// stsActions are those of Sts 2015-04-01: name -> action.
func stsActions() map[string]action {
	return map[string]action{"GetCallerIdentity": {run: (*Server).getCallerIdentity}}
}

func (s *Server) getCallerIdentity(c *call) (answer, error) {
	kind, name, _ := strings.Cut(c.principal, "/")
	a := answer{"AccountId": s.spec.Account, "PrincipalId": name, "IdentityType": "RAMUser", "UserId": name,
		"Arn": "acs:ram::" + s.spec.Account + ":user/" + name}
	if kind == "role" {
		role, session, _ := strings.Cut(name, "/")
		a["IdentityType"], a["RoleId"] = "AssumedRoleUser", role
		a["PrincipalId"] = role + ":" + session
		a["Arn"] = "acs:ram::" + s.spec.Account + ":assumed-role/" + name
	}
	return a, nil
}
