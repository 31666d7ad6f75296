// Walks the official JavaScript SDK through the scenario of test/sdk: "open" between an HTTP app
// and a gRPC app that it serves itself, "locked" through TLS with an API token. It prints one line
// per step and exits with 1 if any failed.
"use strict";

const { DaprClient, CommunicationProtocolEnum, HttpMethod } = require("@dapr/dapr");
const { Report, Inbox, expect, refused, did } = require("./report.js");
const { newApp, pubsubs, quiet } = require("./apps.js");
const { crypto } = require("./crypto.js");
const { stateSteps } = require("./state.js");
const { configurationSteps, lockSteps, secretSteps, bindingSteps } = require("./blocks.js");
const { pubsubSteps } = require("./pubsub.js");

const env = process.env;
const { HTTP, GRPC } = CommunicationProtocolEnum;

async function open(r) {
  const inboxes = { http: new Inbox(), grpc: new Inbox() };
  const web = await newApp(HTTP, inboxes.http);
  const rpc = await newApp(GRPC, inboxes.grpc);
  await r.step("the HTTP app and its client start", () => web.start());
  await r.step("the gRPC app and its client start", () => rpc.start());
  await r.step("both sidecars are healthy", async () => {
    for (const port of [env.WEB_HTTP_PORT, env.RPC_HTTP_PORT]) {
      while ((await fetch(`http://127.0.0.1:${port}/v1.0/healthz`)).status !== 204) {
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  });
  for (const [name, app, http] of [["http", web, true], ["grpc", rpc, false]]) {
    await r.under(name, async () => {
      for (const store of ["mem-state", "emb-state", "redis-state"]) {
        await r.under(store, () => stateSteps(r, app.client, store, http));
      }
      for (const pubsub of pubsubs) {
        await r.under(pubsub, () => pubsubSteps(r, app.client, pubsub, inboxes[name], http));
      }
      for (const store of http ? [] : ["emb-config", "redis-config"]) {
        await r.under(store, () => configurationSteps(r, app.client, store));
      }
      for (const store of ["emb-lock", "redis-lock"]) {
        await r.under(store, () => lockSteps(r, app.client, store, http));
      }
      await r.under("secrets", () => secretSteps(r, app.client, http));
      await r.under("bindings", () => bindingSteps(r, app.client, inboxes[name], http));
      await r.under("metadata", () => metadataSteps(r, app.client, http));
    });
  }
  await r.under("both", () => crossSteps(r, web.client, rpc.client, inboxes));
  await r.under("invoke", () => invokeSteps(r, web.client, rpc.client));
  await r.step("shutdown of the HTTP app's sidecar", () => web.client.sidecar.shutdown());
  // The programs end with process.exit: closing servers waits for connections of the sidecar.
}

async function crossSteps(r, web, rpc, inboxes) {
  await r.step("one event reaches both apps", async () => {
    for (const [client, from] of [[web, "web"], [rpc, "rpc"]]) {
      did(await client.pubsub.publish("emb-pubsub", "shared", { from }));
      expect("the HTTP app's", await inboxes.http.take("emb-pubsub/shared"), { from });
      expect("the gRPC app's", await inboxes.grpc.take("emb-pubsub/shared"), { from });
    }
  });
}

async function invokeSteps(r, web, rpc) {
  const webApp = env.WEB_APP_ID;
  const rpcApp = env.RPC_APP_ID;
  for (const verb of [HttpMethod.GET, HttpMethod.POST, HttpMethod.PUT, HttpMethod.DELETE]) {
    const body = verb === HttpMethod.GET ? undefined : { n: 1 };
    const seen = body ? JSON.stringify(body) : "";
    for (const [name, client] of [["HTTP client", web], ["gRPC client", rpc]]) {
      if (client === rpc && !body) {
        continue; // this client always sends a body, and the next step is about that
      }
      await r.step(`${name}, HTTP app: ${verb}`, async () => {
        const got = await client.invoker.invoke(webApp, "about", verb, body);
        expect("the verb and body", [got.verb, got.body], [verb, body ? seen : "{}"]);
      });
      await r.step(`${name}, gRPC app: ${verb}`, async () => {
        const got = await client.invoker.invoke(rpcApp, "about", verb, body);
        expect("the verb and body", [got.verb, got.body], [verb, seen]);
      });
    }
  }
  await r.step("gRPC client: GET", async () => {
    const got = await rpc.invoker.invoke(rpcApp, "about", HttpMethod.GET);
    expect("the verb", got.verb, HttpMethod.GET);
  });
  await r.step("the query string", async () => {
    const got = await web.invoker.invoke(webApp, "about?a=1&b=c%20d", HttpMethod.GET);
    expect("the URL", got.query, "/about?a=1&b=c%20d");
  });
  await r.step("headers", async () => {
    const got = await web.invoker.invoke(webApp, "about", HttpMethod.POST, { a: 1 }, { headers: { "X-Mine": "theirs" } });
    expect("the header and type", [got.header, got.type], ["theirs", "application/json"]);
  });
  await r.step("the gRPC app's error, over HTTP", () => refused(() => web.invoker.invoke(rpcApp, "broken", HttpMethod.GET), "500"));
  await r.step("the gRPC app's error, over gRPC", () => refused(() => rpc.invoker.invoke(rpcApp, "broken", HttpMethod.GET)));
  await r.step("a path the HTTP app lacks", () => refused(() => web.invoker.invoke(webApp, "missing", HttpMethod.GET), "404"));
  await r.step("a path the HTTP app lacks, over gRPC", () => refused(() => rpc.invoker.invoke(webApp, "missing", HttpMethod.GET), "not_found"));
  await r.step("an unknown app", async () => {
    await refused(() => web.invoker.invoke("no-such-app", "x", HttpMethod.GET), "ERR_DIRECT_INVOKE", "no-such-app");
    await refused(() => rpc.invoker.invoke("no-such-app", "x", HttpMethod.GET), "internal", "no-such-app");
  });
}

async function metadataSteps(r, client, http) {
  await r.step("healthy", async () => expect("health", await client.health.isHealthy(), true));
  await r.step("set and get", async () => {
    await client.metadata.set("colour", "blue");
    const m = await client.metadata.get();
    expect("id", m.id, http ? env.WEB_APP_ID : env.RPC_APP_ID);
    expect("colour", m.extended.colour, "blue");
    expect("the components", m.components.map((c) => `${c.name} ${c.type} ${c.version}`).sort().join(","), env.COMPONENTS);
  });
}

async function locked(r) {
  for (const communicationProtocol of [HTTP, GRPC]) {
    await r.under(communicationProtocol === HTTP ? "http" : "grpc", async () => {
      const make = (options) => new DaprClient({ communicationProtocol, logger: quiet, ...options });
      const client = make({});
      await r.step("a client from the environment", () => client.start());
      await r.step("a call with the token", async () => {
        did(await client.state.save("mem-state", [{ key: "k", value: "v" }]));
        expect("the value", await client.state.get("mem-state", "k"), "v");
      });
      await r.step("a wrong token", async () => {
        const other = make({ daprApiToken: "guess" });
        other.daprClient.setIsInitialized(true); // or it waits a minute for a sidecar that refuses it
        await refused(() => other.state.save("mem-state", [{ key: "k", value: "w" }]), communicationProtocol === HTTP ? "401" : "unauthenticated");
      });
      if (communicationProtocol === GRPC) {
        await r.step("shutdown", () => client.sidecar.shutdown());
      }
    });
  }
}

async function main() {
  const r = new Report();
  const modes = { open, locked, crypto };
  await r.step("setup", async () => expect("the mode is known", process.argv[2] in modes, true));
  await modes[process.argv[2]](r);
  console.log(`DONE ${r.passed} passed, ${r.failed} failed`);
  process.exit(r.failed > 0 ? 1 : 0);
}

main().catch((e) => {
  console.log(`FAIL setup: ${e?.stack ?? e}`);
  process.exit(1);
});
