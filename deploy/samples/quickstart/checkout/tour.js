// The printed end of the quickstart: who called whom, through what, how long it took, and how to
// go on from there.
"use strict";

const { HttpMethod } = require("@dapr/dapr");

// Tour remembers what was done and prints it.
class Tour {
  rows = [];

  // timed runs one call of checkout and notes how long it took. published names the order whose
  // message the call sends, if it does.
  async timed(to, what, call, published) {
    const start = process.hrtime.bigint();
    const result = await call();
    this.rows.push({ to, what, published, ms: Number(process.hrtime.bigint() - start) / 1e6 });
    return result;
  }

  // show waits until inventory has received all orders, then prints.
  async show(client, orders) {
    const delivered = await arrivals(client, orders);
    const lines = ["", "What just happened", ""];
    for (const r of this.rows) {
      lines.push(row("checkout", r.to, r.what, through[r.to], r.ms));
      if (r.published) {
        lines.push(row("pubsub", "inventory", "POST /orders", "inventory's sidecar", delivered.get(r.published.id) - r.published.publishedAt));
      }
    }
    lines.push("", "Deliveries count from the start of their publish. The first calls also open connections.", "", ...howToGoOn(orders), "");
    console.log(lines.join("\n"));
  }
}

const through = { inventory: "both sidecars", statestore: "checkout's sidecar", pubsub: "checkout's sidecar" };

function row(from, to, what, via, ms) {
  return `  ${from.padEnd(9)} -> ${to.padEnd(11)} ${what.padEnd(26)} through ${via.padEnd(19)} ${ms.toFixed(1).padStart(7)} ms`;
}

// arrivals asks inventory when each order's message reached it, in milliseconds of the epoch.
async function arrivals(client, orders) {
  for (let tries = 0; tries < 100; tries++) {
    const seen = new Map((await client.invoker.invoke("inventory", "received", HttpMethod.GET)).map((o) => [o.id, o.receivedAt]));
    if (orders.every((o) => seen.has(o.id))) {
      return seen;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error("inventory did not receive all messages within 5 s");
}

function howToGoOn(orders) {
  const api = `http://localhost:${process.env.DAPR_HTTP_PORT}/v1.0`;
  const json = `-H 'Content-Type: application/json'`;
  return [
    "How to go on, in another terminal",
    "",
    "  order something, through the sidecar:",
    `    curl ${json} -d '{"item":"plum","quantity":4}' ${api}/invoke/checkout/method/order`,
    "  read an order from the store:",
    `    curl ${api}/state/statestore/${orders[0].id}`,
    "  call the other app:",
    `    curl ${api}/invoke/inventory/method/received`,
    "  publish without any app:",
    `    curl ${json} -d '{"id":"by-hand","item":"fig","quantity":1}' ${api}/publish/pubsub/orders`,
    "  see what the sidecar has:",
    `    curl ${api}/metadata`,
    "",
    "Ctrl-C stops both apps and their sidecars. What they stored stays for the next run.",
  ];
}

module.exports = { Tour };
