// Encrypts and decrypts beside a sidecar that has the provider "vault" with the keys "aes" and
// "rsa.pem", and opens a document that Dapr made.
"use strict";

const { randomBytes } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { Readable } = require("node:stream");
const { buffer } = require("node:stream/consumers");
const { DaprClient, CommunicationProtocolEnum } = require("@dapr/dapr");
const { expect, refused } = require("./report.js");
const { quiet } = require("./apps.js");

async function crypto(r) {
  const client = new DaprClient({ communicationProtocol: CommunicationProtocolEnum.GRPC, daprPort: process.env.DAPR_GRPC_PORT, logger: quiet });
  await r.step("the client starts", () => client.start());
  const vault = { componentName: "vault" };
  for (const [keyName, keyWrapAlgorithm] of [["aes", "A256KW"], ["rsa.pem", "RSA"]]) {
    for (const size of [1, 5, 300_000]) {
      await r.step(`${size} bytes with ${keyName}`, async () => {
        const plain = randomBytes(size);
        const doc = await client.crypto.encrypt(plain, { ...vault, keyName, keyWrapAlgorithm });
        const back = await client.crypto.decrypt(doc, vault);
        expect("equality", plain.equals(back), true);
      });
    }
  }
  await r.step("streams", async () => {
    const plain = randomBytes(300_000);
    const seal = await client.crypto.encrypt({ ...vault, keyName: "aes", keyWrapAlgorithm: "AES" });
    const open = await client.crypto.decrypt(vault);
    const back = await buffer(Readable.from([plain.subarray(0, 1000), plain.subarray(1000)]).pipe(seal).pipe(open));
    expect("equality", plain.equals(back), true);
  });
  await r.step("every option", async () => {
    const doc = await client.crypto.encrypt("hello", { ...vault, keyName: "aes", keyWrapAlgorithm: "AES", dataEncryptionCipher: "chacha20-poly1305", omitDecryptionKeyName: true });
    expect("the text", (await client.crypto.decrypt(doc, { ...vault, keyName: "aes" })).toString(), "hello");
  });
  await r.step("a document of Dapr's", async () => {
    const back = await client.crypto.decrypt(readFileSync(process.env.CRYPTO_DOCUMENT), vault);
    expect("equality", back.toString() === "0123456789abcdef".repeat(4106), true);
  });
  await r.step("an unknown key", () => refused(() => client.crypto.encrypt("x", { ...vault, keyName: "nobody", keyWrapAlgorithm: "AES" }), "nobody"));
  await r.step("a document that was changed", async () => {
    const doc = await client.crypto.encrypt("hello", { ...vault, keyName: "aes", keyWrapAlgorithm: "AES" });
    doc[doc.length - 1] ^= 1;
    await refused(() => client.crypto.decrypt(doc, vault), "segment 0");
  });
}

module.exports = { crypto };
