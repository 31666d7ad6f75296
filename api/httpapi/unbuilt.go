package httpapi

import "github.com/mecha-project/mecha/api/apierr"

// Blocks that this sidecar does not have yet answer as Dapr does when nothing of the block is
// configured, so that an SDK's error handling works.

func noJobs(_ *Server, r *Request, _ args) {
	r.Fail(apierr.SchedulerJob.Because("jobs are not available: this sidecar has no scheduler"))
}

func noActors(_ *Server, r *Request, _ args) {
	r.Fail(apierr.ActorNoPlacement.Because("placement service is not configured; actors and workflows are not available"))
}

func noConversation(_ *Server, r *Request, a args) {
	r.Fail(apierr.ConversationNotFound.Because("failed finding conversation component " + a[0]))
}
