// checkout takes orders: it reserves the goods at the inventory app, keeps the order, and tells
// the world. It knows no address but that of its own sidecar, and the SDK finds that by itself.
"use strict";

const http = require("node:http");
const { DaprClient, HttpMethod, LogLevel } = require("@dapr/dapr");
const { Tour } = require("./tour.js");

const client = new DaprClient({ logger: { level: LogLevel.Error } });
let lastNumber = 0;

// placeOrder is all there is to it: a call to another app, a write, a message.
async function placeOrder(item, quantity, tour) {
  const id = `${Date.now().toString(36)}-${++lastNumber}`;
  const order = { id, item, quantity };
  const reserved = await tour.timed("inventory", `POST /reserve ${quantity} ${item}`, () => client.invoker.invoke("inventory", "reserve", HttpMethod.POST, order));
  order.left = reserved.left;
  await tour.timed("statestore", `save order ${id}`, () => done(client.state.save("statestore", [{ key: id, value: order }])));
  order.publishedAt = Date.now();
  await tour.timed("pubsub", `publish on "orders"`, () => done(client.pubsub.publish("pubsub", "orders", order)), order);
  return order;
}

// done turns an error that the SDK returns into one that it throws.
async function done(promise) {
  const result = await promise;
  if (result?.error) {
    throw result.error;
  }
}

// handle serves POST /order {"item", "quantity"} and GET /order?id=….
async function handle(req, res) {
  const url = new URL(req.url, "http://checkout");
  if (url.pathname !== "/order") {
    return answer(res, 404, { error: `checkout has no ${url.pathname}; it has /order` });
  }
  if (req.method === "GET") {
    const order = await client.state.get("statestore", url.searchParams.get("id") ?? "none");
    return order ? answer(res, 200, order) : answer(res, 404, { error: "no such order" });
  }
  let body = "";
  for await (const chunk of req) {
    body += chunk;
    if (body.length > 10_000) {
      return answer(res, 413, { error: "an order is shorter than that" });
    }
  }
  let item, quantity;
  try {
    ({ item, quantity } = JSON.parse(body));
  } catch {
    // answered below
  }
  if (typeof item !== "string" || !Number.isInteger(quantity) || quantity < 1) {
    return answer(res, 400, { error: `an order looks like {"item":"apple","quantity":2}` });
  }
  const tour = new Tour();
  const order = await placeOrder(item, quantity, tour);
  console.log(`order ${order.id}: ${quantity} ${item}, ${order.left} left`);
  answer(res, 200, order);
}

function answer(res, status, value) {
  res.writeHead(status, { "Content-Type": "application/json" });
  res.end(JSON.stringify(value) + "\n");
}

const server = http.createServer((req, res) => {
  handle(req, res).catch((e) => {
    console.error(`order failed: ${e.message}`);
    answer(res, 502, { error: e.message });
  });
});
server.on("error", (e) => {
  console.error(`cannot listen on port ${process.env.APP_PORT}: ${e.message}; if it is taken, change appPort in mecha.yaml`);
  process.exit(1);
});

// demo places a few orders and shows what they did.
async function demo() {
  await client.start();
  await untilInventoryAnswers();
  const tour = new Tour();
  const orders = [];
  for (const [item, quantity] of [["apple", 3], ["pear", 1], ["apple", 2]]) {
    orders.push(await placeOrder(item, quantity, tour));
  }
  await tour.show(client, orders);
}

async function untilInventoryAnswers() {
  for (let tries = 0; ; tries++) {
    try {
      return await client.invoker.invoke("inventory", "ready", HttpMethod.GET);
    } catch (e) {
      if (tries === 600) {
        throw new Error(`inventory did not answer for a minute: ${e.message}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, () => process.exit(0));
}
server.listen(Number(process.env.APP_PORT), "127.0.0.1", () => {
  demo().catch((e) => {
    console.error(`the demonstration failed: ${e.message}`);
    process.exitCode = 1;
    process.exit();
  });
});
