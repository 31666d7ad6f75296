// Publishing by the client of either protocol, receiving by the app beside it.
"use strict";

const { expect, refused, did } = require("./report.js");

async function pubsubSteps(r, client, pubsub, inbox, http) {
  const side = http ? "web" : "rpc";
  const pub = async (topic, data, options) => did(await client.pubsub.publish(pubsub, topic === "declared" ? topic : `${side}-${topic}`, data, options));
  await r.step("an object arrives", async () => {
    await pub("plain", { order: 17, text: "é<>&" });
    expect("data", await inbox.take(`${pubsub}/plain`), { order: 17, text: "é<>&" });
  });
  await r.step("text arrives", async () => {
    await pub("plain", "hällo");
    expect("data", await inbox.take(`${pubsub}/plain`), "hällo");
  });
  await r.step("bytes arrive", async () => {
    await pub("plain", Buffer.from("some bytes"));
    const got = await inbox.take(`${pubsub}/plain`);
    expect("data", typeof got === "string" ? got : Buffer.from(got).toString(), "some bytes");
  });
  await r.step("an own CloudEvent", async () => {
    await pub("plain", { specversion: "1.0", id: "own-1", source: "me", type: "mine", datacontenttype: "application/json", data: { a: 1 } });
    expect("data", await inbox.take(`${pubsub}/plain`), { a: 1 });
  });
  await r.step("a raw payload", async () => {
    await pub("raw", { raw: true }, { metadata: { rawPayload: "true" } });
    let got = await inbox.take(`${pubsub}/raw`);
    expect("data", got instanceof Uint8Array ? JSON.parse(Buffer.from(got)) : got, { raw: true });
  });
  await r.step("rules route", async () => {
    for (const [type, route] of [["special", "special"], ["other", "common"]]) {
      await pub("routed", { type }, { metadata: { "cloudevent.type": type } });
      expect("the event", await inbox.take(`${pubsub}/routed`), { route, data: { type } });
    }
  });
  if (http) {
    await r.step("a declarative subscription", async () => {
      await pub("declared", { by: "file" });
      const got = await inbox.take("declared");
      expect("the event", [got.data, got.topic, got.pubsubname], [{ by: "file" }, "declared", pubsub]);
    });
  }
  await r.step("bulk publish", async () => {
    const res = await client.pubsub.publishBulk(pubsub, `${side}-bulk`, ["one", { n: 2 }, { entryID: "3", event: "three", contentType: "text/plain" }]);
    expect("failed messages", res.failedMessages, []);
    const got = new Set();
    for (let i = 0; i < 3; i++) {
      got.add(JSON.stringify(await inbox.take(`${pubsub}/bulk`)));
    }
    expect("the events", got, new Set([`"one"`, `{"n":2}`, `"three"`]));
  });
  await r.step("bulk subscribe", async () => {
    const want = [];
    for (let n = 0; n < 25; n++) {
      want.push(n);
    }
    const res = await client.pubsub.publishBulk(pubsub, `${side}-batches`, want.map((n) => ({ n })));
    expect("failed messages", res.failedMessages, []);
    const got = [];
    for (let i = 0; i < 25; i++) {
      got.push((await inbox.take(`${pubsub}/batches`)).n);
    }
    expect("the events", got.sort((a, b) => a - b), want);
  });
  await r.step("retried until taken", async () => {
    await pub("retried", { id: r.prefix });
    expect("data", await inbox.take(`${pubsub}/retried`), { id: r.prefix });
  });
  await r.step("dropped to the dead-letter topic", async () => {
    await pub("dropped", "unwanted");
    expect("data", await inbox.take(`${pubsub}/dead`), "unwanted");
  });
  await r.step("an unknown pubsub", () => refused(() => client.pubsub.publish("no-such-pubsub", "t", { x: 1 }), http ? "ERR_PUBSUB_NOT_FOUND" : "invalid_argument"));
}

module.exports = { pubsubSteps };
