// Configuration, locks, secrets and bindings, by the client of either protocol.
"use strict";

const { LockStatus } = require("@dapr/dapr/types/lock/UnlockResponse");
const { Inbox, expect, refused, did } = require("./report.js");

const env = process.env;

// write writes a configuration item as its operator does, for the SDKs only read.
async function write(store, key, value) {
  const res = await fetch(`${env.OPERATOR}/${store}/${key}`, { method: "PUT", body: value });
  expect("the operator's status", res.status, 200);
}

// The SDK has configuration over gRPC only.
async function configurationSteps(r, client, store) {
  const [a, b, missing] = ["a", "b", "missing"].map((name) => `${env.RPC_APP_ID}-${name}`);
  await r.step("get", async () => {
    await write(store, a, "1");
    await write(store, b, "é<>&");
    const { items } = await client.configuration.get(store, [a, b, missing]);
    expect("the items", Object.fromEntries(Object.entries(items).map(([k, i]) => [k, i.value])), { [a]: "1", [b]: "é<>&" });
  });
  await r.step("subscribe and stop", async () => {
    const told = { first: new Inbox(), second: new Inbox() };
    const keep = (name) => async ({ items }) => Object.entries(items).forEach(([k, i]) => told[name].put(k, i.value));
    const first = await client.configuration.subscribeWithKeys(store, [a], keep("first"));
    const second = await client.configuration.subscribeWithKeys(store, [a, b], keep("second"));
    // The SDK returns before the sidecar has subscribed and does not tell when that is, so changes
    // are made until one is told.
    for (const name of ["first", "second"]) {
      await changeUntilTold(store, a, told[name]);
    }
    await first.stop();
    await write(store, a, "the last");
    while ((await told.second.take(a)) !== "the last");
    expect("an ended subscription was told", told.first.all(a).includes("the last"), false);
    await second.stop();
  });
  await r.step("an unknown store", () => refused(() => client.configuration.get("no-such-store", [a]), "invalid_argument"));
}

async function changeUntilTold(store, key, inbox) {
  let n = 0;
  let heard = false;
  const told = inbox.take(key).then(() => (heard = true));
  while (!heard) {
    await write(store, key, `change ${++n}`);
    await Promise.race([told, new Promise((resolve) => setTimeout(resolve, 100))]);
  }
}

async function lockSteps(r, client, store, http) {
  const name = http ? "web-turn" : "rpc-turn";
  const tries = async (owner, want, seconds = 60) => expect(`whether ${owner} has the lock`, (await client.lock.lock(store, name, owner, seconds)).success, want);
  const unlock = async (owner, want) => expect(`what unlocking by ${owner} says`, (await client.lock.unlock(store, name, owner)).status, want);
  await r.step("one owner at a time", async () => {
    await tries("one", true);
    await tries("one", false);
    await tries("two", false);
    await unlock("two", LockStatus.LockBelongsToOthers);
    await unlock("one", LockStatus.Success);
    await unlock("one", LockStatus.LockDoesNotExist);
  });
  await r.step("a lock ends by itself", async () => {
    await tries("one", true, 1);
    while (!(await client.lock.lock(store, name, "two", 60)).success) {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await unlock("two", LockStatus.Success);
  });
  await r.step("a time that is none", () => refused(() => client.lock.lock(store, name, "one", 0), http ? "ERR_MALFORMED_REQUEST" : "invalid_argument"));
}

async function secretSteps(r, client, http) {
  const pair = { user: "u", password: "p" };
  await r.step("get", async () => {
    expect("a secret", await client.secret.get("file-secrets", "plain"), { plain: "hidden" });
    if (http) { // over gRPC the SDK gives one value of a secret, whichever comes first
      expect("one of two values", await client.secret.get("file-secrets", "pair"), pair);
    }
  });
  await r.step("get all", async () => {
    const all = await client.secret.getBulk("file-secrets");
    expect("the names", Object.keys(all).sort(), ["pair", "plain"]);
    expect("the values", [plainly(all.plain), plainly(all.pair)], [{ plain: "hidden" }, pair]);
  });
  await r.step("a missing secret", () => refused(() => client.secret.get("file-secrets", "missing"), http ? "ERR_SECRET_GET" : "internal"));
  await r.step("an unknown store", () => refused(() => client.secret.getBulk("no-such-store"), http ? "ERR_SECRET_STORE_NOT_FOUND" : "invalid_argument"));
}

// plainly is a secret's values: over gRPC the SDK leaves them in the message.
function plainly(secret) {
  return { ...(secret.secrets ?? secret) };
}

async function bindingSteps(r, client, inbox, http) {
  const file = `js/${http ? "web" : "rpc"}.json`;
  const send = async (operation, data, name = file) => client.binding.send("files", operation, data, { fileName: name });
  await r.step("output: create, get, delete", async () => {
    const created = await send("create", { n: 1, s: "é" });
    expect("what creating says", JSON.stringify(readable(created)).includes(file), true);
    expect("the file", readable(await send("get")), { n: 1, s: "é" });
    did(await send("delete"));
    await refused(() => send("get"), http ? "ERR_INVOKE_OUTPUT_BINDING" : "internal");
  });
  await r.step("output: an unknown operation", () => refused(() => send("sing"), http ? "ERR_INVOKE_OUTPUT_BINDING" : "internal"));
  await r.step("input: events come", async () => {
    for (let n = 0; n < 2; n++) { // the SDK hands on the data, which are none, and no metadata
      expect("the data's length", Object.keys((await inbox.take("tick")) ?? "").length, 0);
    }
  });
}

// readable is an answer's data: over HTTP the SDK has decoded them, over gRPC they are bytes.
function readable(answer) {
  return answer.data instanceof Uint8Array ? JSON.parse(Buffer.from(answer.data)) : answer;
}

module.exports = { configurationSteps, lockSteps, secretSteps, bindingSteps };
