// Steps and their outcome, and the inbox that events arrive in.
"use strict";

const util = require("node:util");

const stepLimit = 15_000; // milliseconds

class Report {
  passed = 0;
  failed = 0;
  prefix = "";

  async step(name, run) {
    const start = Date.now();
    let timer;
    try {
      const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`not done after ${stepLimit} ms`)), stepLimit);
      });
      await Promise.race([run(), late]);
      this.passed++;
      console.log(`PASS ${this.prefix}${name} (${Date.now() - start}ms)`);
    } catch (e) {
      this.failed++;
      console.log(`FAIL ${this.prefix}${name}: ${String(e?.error ?? e?.message ?? e).replaceAll("\n", " ")}`);
    } finally {
      clearTimeout(timer);
    }
  }

  async under(prefix, run) {
    const old = this.prefix;
    this.prefix += `${prefix}: `;
    await run();
    this.prefix = old;
  }
}

// Inbox keeps what the apps received, by topic.
class Inbox {
  events = new Map();
  waiting = new Map();

  put(topic, data) {
    const waiting = this.waiting.get(topic) ?? [];
    if (waiting.length > 0) {
      waiting.shift()(data);
      return;
    }
    this.events.set(topic, [...(this.events.get(topic) ?? []), data]);
  }

  // all is what has arrived and was not taken.
  all(topic) {
    return this.events.get(topic) ?? [];
  }

  take(topic) {
    const events = this.events.get(topic) ?? [];
    if (events.length > 0) {
      return Promise.resolve(events.shift());
    }
    return new Promise((resolve) => this.waiting.set(topic, [...(this.waiting.get(topic) ?? []), resolve]));
  }
}

function expect(what, got, want) {
  if (!util.isDeepStrictEqual(got, want)) {
    throw new Error(`${what} is ${util.inspect(got)}, want ${util.inspect(want)}`);
  }
}

// refused fails unless run does, with all of texts in its message.
async function refused(run, ...texts) {
  let result;
  try {
    result = await run();
  } catch (e) {
    result = { error: e };
  }
  // Some methods return their error.
  let inner = result?.error;
  inner = inner?.error ?? inner;
  if (!inner) {
    throw new Error(`got ${util.inspect(result)}, want an error`);
  }
  const message = String(inner.message ?? inner);
  for (const t of texts) {
    if (!message.includes(t)) {
      throw new Error(`got ${message}, want an error with ${t}`);
    }
  }
}

// did fails if a method that returns its error returned one.
function did(result) {
  if (result?.error) {
    throw result.error;
  }
}

module.exports = { Report, Inbox, expect, refused, did };
