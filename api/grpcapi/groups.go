package grpcapi

// groups are the method groups of the API lists: "<name>.<version>" to exact methods.
var groups = map[string]map[string]bool{
	"invoke.v1":              set("InvokeService"),
	"state.v1":               set("GetState", "GetBulkState", "SaveState", "DeleteState", "DeleteBulkState", "ExecuteStateTransaction"),
	"state.v1alpha1":         set("QueryStateAlpha1"),
	"publish.v1":             set("PublishEvent", "BulkPublishEvent"),
	"publish.v1alpha1":       set("BulkPublishEventAlpha1"),
	"subscribe.v1alpha1":     set("SubscribeTopicEventsAlpha1"),
	"bindings.v1":            set("InvokeBinding"),
	"secrets.v1":             set("GetSecret", "GetBulkSecret"),
	"actors.v1":              set("RegisterActorTimer", "UnregisterActorTimer", "RegisterActorReminder", "UnregisterActorReminder", "UnregisterActorRemindersByType", "ListActorReminders", "GetActorReminder", "GetActorState", "ExecuteActorStateTransaction", "InvokeActor"),
	"actors.v1alpha1":        set("SubscribeActorEventsAlpha1"),
	"metadata.v1":            set("GetMetadata", "SetMetadata"),
	"configuration.v1":       set("GetConfiguration", "SubscribeConfiguration", "UnsubscribeConfiguration"),
	"configuration.v1alpha1": set("GetConfigurationAlpha1", "SubscribeConfigurationAlpha1", "UnsubscribeConfigurationAlpha1"),
	"lock.v1alpha1":          set("TryLockAlpha1"),
	"unlock.v1alpha1":        set("UnlockAlpha1"),
	"crypto.v1alpha1":        set("EncryptAlpha1", "DecryptAlpha1"),
	"subtlecrypto.v1alpha1":  set("SubtleGetKeyAlpha1", "SubtleEncryptAlpha1", "SubtleDecryptAlpha1", "SubtleWrapKeyAlpha1", "SubtleUnwrapKeyAlpha1", "SubtleSignAlpha1", "SubtleVerifyAlpha1"),
	"workflows.v1alpha1":     set("StartWorkflowAlpha1", "GetWorkflowAlpha1", "PurgeWorkflowAlpha1", "TerminateWorkflowAlpha1", "PauseWorkflowAlpha1", "ResumeWorkflowAlpha1", "RaiseEventWorkflowAlpha1"),
	"workflows.v1beta1":      set("StartWorkflowBeta1", "GetWorkflowBeta1", "PurgeWorkflowBeta1", "TerminateWorkflowBeta1", "PauseWorkflowBeta1", "ResumeWorkflowBeta1", "RaiseEventWorkflowBeta1"),
	"shutdown.v1":            set("Shutdown"),
	"jobs.v1":                set("ScheduleJob", "GetJob", "DeleteJob", "ListJobs", "DeleteJobsByPrefix"),
	"jobs.v1alpha1":          set("ScheduleJobAlpha1", "GetJobAlpha1", "DeleteJobAlpha1", "ListJobsAlpha1", "DeleteJobsByPrefixAlpha1"),
	"conversation.v1alpha1":  set("ConverseAlpha1"),
	"conversation.v1alpha2":  set("ConverseAlpha2"),
}

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}
