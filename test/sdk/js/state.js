// State, by the client of either protocol.
"use strict";

const { StateConcurrencyEnum } = require("@dapr/dapr");
const { expect, refused, did } = require("./report.js");

async function stateSteps(r, client, store, http) {
  const value = async (key, want) => expect(`the value of ${key}`, await client.state.get(store, key), want);
  const etag = async (key) => (await client.state.getBulk(store, [key]))[0].etag;
  await r.step("save and get", async () => {
    did(await client.state.save(store, [{ key: "object", value: { n: 1, s: "é<>&" } }, { key: "number", value: 7 }]));
    await value("object", { n: 1, s: "é<>&" });
    await value("number", 7);
  });
  await r.step("a missing key is empty", () => value("never-written", ""));
  await r.step("an odd key", async () => {
    did(await client.state.save(store, [{ key: "a/b c", value: "odd" }]));
    await value(http ? "a%2Fb%20c" : "a/b c", "odd");
  });
  await r.step("etags guard writes", async () => {
    did(await client.state.save(store, [{ key: "guarded", value: "one" }]));
    const first = await etag("guarded");
    did(await client.state.save(store, [{ key: "guarded", value: "two", etag: first }]));
    await refused(() => client.state.save(store, [{ key: "guarded", value: "three", etag: first }]), http ? "409" : "aborted");
    await value("guarded", "two");
  });
  await r.step("etags guard deletes", async () => {
    await refused(() => client.state.delete(store, "guarded", { etag: "999999" }), http ? "409" : "aborted");
    did(await client.state.delete(store, "guarded", { etag: await etag("guarded") }));
    await value("guarded", "");
  });
  await r.step("the first write wins", async () => {
    const item = (value) => [{ key: "first", value, options: { concurrency: StateConcurrencyEnum.CONCURRENCY_FIRST_WRITE } }];
    did(await client.state.delete(store, "first"));
    did(await client.state.save(store, item("one")));
    await refused(() => client.state.save(store, item("two")), http ? "409" : "aborted");
    await value("first", "one");
  });
  await r.step("bulk get", async () => { // saving takes several items anyway; the SDK cannot delete several in one call
    const items = await client.state.getBulk(store, ["object", "number", "never-written"], { parallelism: 2 });
    const got = Object.fromEntries(items.map((i) => [i.key, i.data || undefined]));
    expect("the items", got, { object: { n: 1, s: "é<>&" }, number: 7, "never-written": undefined });
  });
  await r.step("a transaction is all", async () => {
    did(await client.state.save(store, [{ key: "t2", value: "goes" }]));
    await client.state.transaction(store, [
      { operation: "upsert", request: { key: "t1", value: "here" } },
      { operation: "delete", request: { key: "t2" } },
    ]);
    await value("t1", "here");
    await value("t2", "");
  });
  await r.step("or nothing", async () => {
    await refused(
      () =>
        client.state.transaction(store, [
          { operation: "upsert", request: { key: "t3", value: "never" } },
          { operation: "upsert", request: { key: "t1", value: "never", etag: "999999" } },
        ]),
      http ? "500" : "internal",
    );
    await value("t3", "");
    await value("t1", "here");
  });
  await r.step("expiry", async () => {
    did(await client.state.save(store, [{ key: "brief", value: "soon gone" }], { metadata: { ttlInSeconds: "1" } }));
    await value("brief", "soon gone");
    while ((await client.state.get(store, "brief")) !== "") {
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  });
  await r.step("an unknown store", () => refused(() => client.state.save("no-such-store", [{ key: "k", value: "v" }]), http ? "ERR_STATE_STORE_NOT_FOUND" : "invalid_argument"));
}

module.exports = { stateSteps };
