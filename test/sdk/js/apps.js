// The two apps, served by the SDK: one over HTTP, one over gRPC.
"use strict";

const { DaprServer, CommunicationProtocolEnum, DaprPubSubStatusEnum, HttpMethod, LogLevel } = require("@dapr/dapr");

const pubsubs = ["mem-pubsub", "emb-pubsub"];
const quiet = { level: LogLevel.Error };
const env = process.env;

function newServer(protocol) {
  const http = protocol === CommunicationProtocolEnum.HTTP;
  return new DaprServer({
    serverHost: "127.0.0.1",
    serverPort: http ? env.WEB_APP_PORT : env.RPC_APP_PORT,
    communicationProtocol: protocol,
    logger: quiet,
    clientOptions: {
      daprHost: "127.0.0.1",
      daprPort: http ? env.WEB_HTTP_PORT : env.RPC_GRPC_PORT,
      communicationProtocol: protocol,
      logger: quiet,
    },
  });
}

// newApp makes the app of a protocol; its events go to the inbox under "<pubsub>/<topic>". Its own
// topics begin with its side, for the brokers may be shared; both apps subscribe to "shared".
async function newApp(protocol, inbox) {
  const server = newServer(protocol);
  const side = protocol === CommunicationProtocolEnum.HTTP ? "web" : "rpc";
  for (const pubsub of pubsubs) {
    const keep = (topic) => async (data) => inbox.put(`${pubsub}/${topic}`, data);
    await server.pubsub.subscribe(pubsub, "shared", keep("shared"));
    await server.pubsub.subscribe(pubsub, `${side}-plain`, keep("plain"));
    await server.pubsub.subscribe(pubsub, `${side}-raw`, keep("raw"), "/raw", { rawPayload: true });
    await server.pubsub.subscribe(pubsub, `${side}-bulk`, keep("bulk"));
    await server.pubsub.subscribeBulk(pubsub, `${side}-batches`, keep("batches"), { maxMessagesCount: 10, maxAwaitDurationMs: 100 });
    await server.pubsub.subscribeWithOptions(pubsub, `${side}-routed`, {
      route: { default: "/common", rules: [{ match: `event.type == "special"`, path: "/special" }] },
    });
    for (const route of ["common", "special"]) {
      server.pubsub.subscribeToRoute(pubsub, `${side}-routed`, route, async (data) => inbox.put(`${pubsub}/routed`, { route, data }));
    }
    const seen = new Set();
    await server.pubsub.subscribe(pubsub, `${side}-retried`, async (data) => {
      if (!seen.has(data.id)) {
        seen.add(data.id);
        return DaprPubSubStatusEnum.RETRY;
      }
      inbox.put(`${pubsub}/retried`, data);
    });
    await server.pubsub.subscribeWithOptions(pubsub, `${side}-dropped`, { deadLetterTopic: `${side}-dead`, callback: async () => DaprPubSubStatusEnum.DROP });
    await server.pubsub.subscribe(pubsub, `${side}-dead`, keep("dead"));
  }
  // The declarative subscriptions of both brokers come to one route of the HTTP app.
  if (protocol === CommunicationProtocolEnum.HTTP) {
    await server.invoker.listen("declared", async ({ body }) => inbox.put("declared", JSON.parse(body)), { method: HttpMethod.POST });
  }
  await server.binding.receive("tick", async (data) => inbox.put("tick", data));
  for (const method of [HttpMethod.GET, HttpMethod.POST, HttpMethod.PUT, HttpMethod.DELETE]) {
    await server.invoker.listen("about", async (call) => ({ verb: method, body: call.body, query: call.query, type: call.metadata?.contentType, header: call.headers?.["x-mine"] }), { method });
  }
  await server.invoker.listen("broken", async () => {
    if (protocol === CommunicationProtocolEnum.HTTP) {
      // Express passes a rejected promise on to nobody, so this handler cannot throw.
      return { broken: "not supported by the SDK over HTTP" };
    }
    throw new Error("the handler failed");
  });
  return server;
}

module.exports = { newApp, pubsubs, quiet };
