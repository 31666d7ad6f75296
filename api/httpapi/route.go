package httpapi

import "strings"

// operation is one row of the API.
type operation struct {
	name    string // as in API logs: "GetState"
	group   string // as in API allow and deny lists
	version string
	handle  func(*Server, *Request, args)
}

// args are the decoded path parameters of a route, in order.
type args [3]string

// Groups of the API lists.
const (
	groupInvoke   = "invoke"
	groupMetadata = "metadata"
	groupHealth   = "healthz"
)

var opInvoke = operation{name: "InvokeService", group: groupInvoke, version: v1}

// Versions as in paths and, aliased, in API lists.
const (
	v1     = "v1.0"
	alpha1 = "v1.0-alpha1"
	alpha2 = "v1.0-alpha2"
	beta1  = "v1.0-beta1"
)

// lookup finds the operation of a request by method and path. Methods are exact: a path with
// another method is as unknown as any other path, and so falls to service invocation.
func lookup(r *Request) (operation, args) {
	path := r.Path
	if strings.HasPrefix(path, "/v1.0/invoke/") {
		return operation{name: opInvoke.name, group: groupInvoke, version: v1, handle: (*Server).invokePath}, args{}
	}
	if rest, ok := strings.CutPrefix(path, "/mecha/v1/"); ok && r.Method == "POST" {
		if service, method, ok := strings.Cut(rest, "/"); ok {
			return operation{name: "mecha.v1", group: "mecha." + strings.ToLower(service), version: v1, handle: (*Server).native}, args{service, method}
		}
	}
	if len(path) > 1 && path[len(path)-1] == '/' {
		path = path[:len(path)-1]
	}
	path, ok := strings.CutPrefix(path, "/")
	if !ok {
		return operation{}, args{}
	}
	version, rest, _ := strings.Cut(path, "/")
	group, rest, _ := strings.Cut(rest, "/")
	for i := range routes[group] {
		rt := &routes[group][i]
		if !rt.allows(r.Method, version) {
			continue
		}
		if a, ok := rt.match(rest); ok {
			return operation{name: rt.name, group: rt.list(), version: version, handle: rt.handle}, a
		}
	}
	return operation{}, args{}
}

// route is one line of the table: what comes after "<version>/<group>/". A segment "*" is a
// parameter, a last segment "**" takes the rest.
type route struct {
	methods  string // space separated
	versions string
	pattern  string
	name     string
	group    string // in API lists, where it differs from the path
	handle   func(*Server, *Request, args)
}

func (rt *route) list() string { return rt.group }

func (rt *route) allows(method, version string) bool {
	return hasWord(rt.methods, method) && hasWord(rt.versions, version)
}

func hasWord(list, word string) bool {
	for list != "" {
		var w string
		w, list, _ = strings.Cut(list, " ")
		if w == word {
			return true
		}
	}
	return false
}

// match compares the rest of a path with the pattern. Parameters must not be empty; they are
// decoded.
func (rt *route) match(rest string) (a args, ok bool) {
	n := 0
	pattern := rt.pattern
	for {
		var want string
		want, pattern, _ = strings.Cut(pattern, "/")
		if want == "**" {
			a[n] = unescape(rest)
			return a, rest != ""
		}
		var got string
		var more bool
		got, rest, more = strings.Cut(rest, "/")
		switch {
		case want == "*" && got != "":
			a[n] = unescape(got)
			n++
		case want != got:
			return a, false
		case want == "*":
			return a, false
		}
		if pattern == "" {
			return a, !more
		}
		if !more {
			return a, false
		}
	}
}

// routes is the API, by the path's group. Order within a group is the order of trial.
var routes map[string][]route

func init() { // a literal would be an initialisation cycle: handlers reach lookup
	post, get, postPut, del := "POST", "GET", "POST PUT", "DELETE"
	both := v1 + " " + alpha1
	workflows := v1 + " " + beta1 + " " + alpha1
	routes = map[string][]route{
		"publish": {
			{postPut, both, "bulk/*/**", "BulkPublishEvent", "publish", (*Server).bulkPublish},
			{postPut, v1, "*/**", "PublishEvent", "publish", (*Server).publish},
		},
		"state": {
			{get, v1, "*/*", "GetState", "state", (*Server).stateGet},
			{del, v1, "*/*", "DeleteState", "state", (*Server).stateDelete},
			{postPut, v1, "*", "SaveState", "state", (*Server).stateSave},
			{postPut, v1, "*/bulk", "GetBulkState", "state", (*Server).stateBulkGet},
			{postPut, v1, "*/transaction", "ExecuteStateTransaction", "state", (*Server).stateTransaction},
			{postPut, alpha1, "*/query", "QueryStateAlpha1", "state", (*Server).stateQuery},
		},
		"metadata": {
			{get, v1, "", "GetMetadata", groupMetadata, (*Server).metadataGet},
			{"PUT", v1, "*", "SetMetadata", groupMetadata, (*Server).metadataSet},
		},
		"healthz": {
			{get, v1, "", "Healthz", groupHealth, (*Server).healthz},
			{get, v1, "outbound", "HealthzOutbound", groupHealth, (*Server).healthzOutbound},
		},
		"shutdown": {{post, v1, "", "Shutdown", "shutdown", (*Server).shutdown}},
		"configuration": {
			{get, both, "*/subscribe", "SubscribeConfiguration", "configuration", (*Server).configSubscribe},
			{get, both, "*/*/unsubscribe", "UnsubscribeConfiguration", "configuration", (*Server).configUnsubscribe},
			{get, both, "*", "GetConfiguration", "configuration", (*Server).configGet},
		},
		"lock":   {{post, alpha1, "*", "TryLockAlpha1", "lock", (*Server).tryLock}},
		"unlock": {{post, alpha1, "*", "UnlockAlpha1", "unlock", (*Server).unlock}},
		"secrets": {
			{get, v1, "*/bulk", "GetBulkSecret", "secrets", (*Server).secretAll},
			{get, v1, "*/*", "GetSecret", "secrets", (*Server).secretGet},
		},
		"bindings": {{postPut, v1, "*", "InvokeBinding", "bindings", (*Server).bindingInvoke}},
		"jobs":     {{"POST GET DELETE", both, "*", "ScheduleJob", "jobs", noJobs}},
		"actors": {
			{postPut, v1, "*/*/state", "ExecuteActorStateTransaction", "actors", noActors},
			{get, v1, "*/*/state/*", "GetActorState", "actors", noActors},
			{"GET POST PUT DELETE", v1, "*/*/method/**", "InvokeActor", "actors", noActors},
			{"POST PUT DELETE GET", v1, "*/*/reminders/*", "RegisterActorReminder", "actors", noActors},
			{"POST PUT DELETE", v1, "*/*/timers/*", "RegisterActorTimer", "actors", noActors},
		},
		"workflows": {
			{get, workflows, "*/*", "GetWorkflow", "workflows", noActors},
			{post, workflows, "*/*/start", "StartWorkflow", "workflows", noActors},
			{post, workflows, "*/*/pause", "PauseWorkflow", "workflows", noActors},
			{post, workflows, "*/*/resume", "ResumeWorkflow", "workflows", noActors},
			{post, workflows, "*/*/terminate", "TerminateWorkflow", "workflows", noActors},
			{post, workflows, "*/*/purge", "PurgeWorkflow", "workflows", noActors},
			{post, workflows, "*/*/raiseEvent/*", "RaiseEventWorkflow", "workflows", noActors},
		},
		"crypto": {
			{"PUT", alpha1, "*/encrypt", "EncryptAlpha1", "crypto", (*Server).encrypt},
			{"PUT", alpha1, "*/decrypt", "DecryptAlpha1", "crypto", (*Server).decrypt},
		},
		"subtlecrypto": {
			{post, alpha1, "*/getkey", "SubtleGetKeyAlpha1", "subtlecrypto", (*Server).subtleKey},
			{post, alpha1, "*/encrypt", "SubtleEncryptAlpha1", "subtlecrypto", (*Server).subtleEncrypt},
			{post, alpha1, "*/decrypt", "SubtleDecryptAlpha1", "subtlecrypto", (*Server).subtleDecrypt},
			{post, alpha1, "*/wrapkey", "SubtleWrapKeyAlpha1", "subtlecrypto", (*Server).subtleWrap},
			{post, alpha1, "*/unwrapkey", "SubtleUnwrapKeyAlpha1", "subtlecrypto", (*Server).subtleUnwrap},
			{post, alpha1, "*/sign", "SubtleSignAlpha1", "subtlecrypto", (*Server).subtleSign},
			{post, alpha1, "*/verify", "SubtleVerifyAlpha1", "subtlecrypto", (*Server).subtleVerify},
		},
		"conversation": {{post, alpha1 + " " + alpha2, "*/converse", "Converse", "conversation", noConversation}},
	}
}
