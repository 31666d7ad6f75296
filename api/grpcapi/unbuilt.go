package grpcapi

import (
	"context"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mecha-project/mecha/api/apierr"
)

// Blocks that this sidecar does not have yet answer as Dapr does when nothing of the block is
// configured.
var (
	noActors       = apierr.ActorNoPlacement.Because("placement service is not configured; actors and workflows are not available")
	noJobs         = apierr.SchedulerJob.Because("jobs are not available: this sidecar has no scheduler")
	noConversation = apierr.ConversationNotFound.Because("failed finding conversation component")
)

// RegisterActorTimer is refused.
func (s *Server) RegisterActorTimer(context.Context, *runtimev1.RegisterActorTimerRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// UnregisterActorTimer is refused.
func (s *Server) UnregisterActorTimer(context.Context, *runtimev1.UnregisterActorTimerRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// RegisterActorReminder is refused.
func (s *Server) RegisterActorReminder(context.Context, *runtimev1.RegisterActorReminderRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// UnregisterActorReminder is refused.
func (s *Server) UnregisterActorReminder(context.Context, *runtimev1.UnregisterActorReminderRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// UnregisterActorRemindersByType is refused.
func (s *Server) UnregisterActorRemindersByType(context.Context, *runtimev1.UnregisterActorRemindersByTypeRequest) (*runtimev1.UnregisterActorRemindersByTypeResponse, error) {
	return nil, noActors
}

// ListActorReminders is refused.
func (s *Server) ListActorReminders(context.Context, *runtimev1.ListActorRemindersRequest) (*runtimev1.ListActorRemindersResponse, error) {
	return nil, noActors
}

// GetActorState is refused.
func (s *Server) GetActorState(context.Context, *runtimev1.GetActorStateRequest) (*runtimev1.GetActorStateResponse, error) {
	return nil, noActors
}

// GetActorReminder is refused.
func (s *Server) GetActorReminder(context.Context, *runtimev1.GetActorReminderRequest) (*runtimev1.GetActorReminderResponse, error) {
	return nil, noActors
}

// ExecuteActorStateTransaction is refused.
func (s *Server) ExecuteActorStateTransaction(context.Context, *runtimev1.ExecuteActorStateTransactionRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// InvokeActor is refused.
func (s *Server) InvokeActor(context.Context, *runtimev1.InvokeActorRequest) (*runtimev1.InvokeActorResponse, error) {
	return nil, noActors
}

// SubscribeActorEventsAlpha1 is refused.
func (s *Server) SubscribeActorEventsAlpha1(runtimev1.Dapr_SubscribeActorEventsAlpha1Server) error {
	return noActors
}

// StartWorkflowAlpha1 is refused.
func (s *Server) StartWorkflowAlpha1(context.Context, *runtimev1.StartWorkflowRequest) (*runtimev1.StartWorkflowResponse, error) {
	return nil, noActors
}

// GetWorkflowAlpha1 is refused.
func (s *Server) GetWorkflowAlpha1(context.Context, *runtimev1.GetWorkflowRequest) (*runtimev1.GetWorkflowResponse, error) {
	return nil, noActors
}

// PurgeWorkflowAlpha1 is refused.
func (s *Server) PurgeWorkflowAlpha1(context.Context, *runtimev1.PurgeWorkflowRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// TerminateWorkflowAlpha1 is refused.
func (s *Server) TerminateWorkflowAlpha1(context.Context, *runtimev1.TerminateWorkflowRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// PauseWorkflowAlpha1 is refused.
func (s *Server) PauseWorkflowAlpha1(context.Context, *runtimev1.PauseWorkflowRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// ResumeWorkflowAlpha1 is refused.
func (s *Server) ResumeWorkflowAlpha1(context.Context, *runtimev1.ResumeWorkflowRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// RaiseEventWorkflowAlpha1 is refused.
func (s *Server) RaiseEventWorkflowAlpha1(context.Context, *runtimev1.RaiseEventWorkflowRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// StartWorkflowBeta1 is refused.
func (s *Server) StartWorkflowBeta1(context.Context, *runtimev1.StartWorkflowRequest) (*runtimev1.StartWorkflowResponse, error) {
	return nil, noActors
}

// GetWorkflowBeta1 is refused.
func (s *Server) GetWorkflowBeta1(context.Context, *runtimev1.GetWorkflowRequest) (*runtimev1.GetWorkflowResponse, error) {
	return nil, noActors
}

// PurgeWorkflowBeta1 is refused.
func (s *Server) PurgeWorkflowBeta1(context.Context, *runtimev1.PurgeWorkflowRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// TerminateWorkflowBeta1 is refused.
func (s *Server) TerminateWorkflowBeta1(context.Context, *runtimev1.TerminateWorkflowRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// PauseWorkflowBeta1 is refused.
func (s *Server) PauseWorkflowBeta1(context.Context, *runtimev1.PauseWorkflowRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// ResumeWorkflowBeta1 is refused.
func (s *Server) ResumeWorkflowBeta1(context.Context, *runtimev1.ResumeWorkflowRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// RaiseEventWorkflowBeta1 is refused.
func (s *Server) RaiseEventWorkflowBeta1(context.Context, *runtimev1.RaiseEventWorkflowRequest) (*emptypb.Empty, error) {
	return nil, noActors
}

// ScheduleJobAlpha1 is refused.
func (s *Server) ScheduleJobAlpha1(context.Context, *runtimev1.ScheduleJobRequest) (*runtimev1.ScheduleJobResponse, error) {
	return nil, noJobs
}

// ScheduleJob is refused.
func (s *Server) ScheduleJob(context.Context, *runtimev1.ScheduleJobRequest) (*runtimev1.ScheduleJobResponse, error) {
	return nil, noJobs
}

// GetJobAlpha1 is refused.
func (s *Server) GetJobAlpha1(context.Context, *runtimev1.GetJobRequest) (*runtimev1.GetJobResponse, error) {
	return nil, noJobs
}

// GetJob is refused.
func (s *Server) GetJob(context.Context, *runtimev1.GetJobRequest) (*runtimev1.GetJobResponse, error) {
	return nil, noJobs
}

// DeleteJobAlpha1 is refused.
func (s *Server) DeleteJobAlpha1(context.Context, *runtimev1.DeleteJobRequest) (*runtimev1.DeleteJobResponse, error) {
	return nil, noJobs
}

// DeleteJob is refused.
func (s *Server) DeleteJob(context.Context, *runtimev1.DeleteJobRequest) (*runtimev1.DeleteJobResponse, error) {
	return nil, noJobs
}

// DeleteJobsByPrefixAlpha1 is refused.
func (s *Server) DeleteJobsByPrefixAlpha1(context.Context, *runtimev1.DeleteJobsByPrefixRequestAlpha1) (*runtimev1.DeleteJobsByPrefixResponseAlpha1, error) {
	return nil, noJobs
}

// DeleteJobsByPrefix is refused.
func (s *Server) DeleteJobsByPrefix(context.Context, *runtimev1.DeleteJobsByPrefixRequest) (*runtimev1.DeleteJobsByPrefixResponse, error) {
	return nil, noJobs
}

// ListJobsAlpha1 is refused.
func (s *Server) ListJobsAlpha1(context.Context, *runtimev1.ListJobsRequestAlpha1) (*runtimev1.ListJobsResponseAlpha1, error) {
	return nil, noJobs
}

// ListJobs is refused.
func (s *Server) ListJobs(context.Context, *runtimev1.ListJobsRequest) (*runtimev1.ListJobsResponse, error) {
	return nil, noJobs
}

// ConverseAlpha1 is refused.
//
//lint:ignore SA1019 the call is deprecated and part of the API all the same
func (s *Server) ConverseAlpha1(context.Context, *runtimev1.ConversationRequest) (*runtimev1.ConversationResponse, error) {
	return nil, noConversation
}

// ConverseAlpha2 is refused.
func (s *Server) ConverseAlpha2(context.Context, *runtimev1.ConversationRequestAlpha2) (*runtimev1.ConversationResponseAlpha2, error) {
	return nil, noConversation
}
