package nats_test

func limitNode() {}
