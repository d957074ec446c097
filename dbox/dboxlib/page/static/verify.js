// SPDX-License-Identifier: Apache-2.0
// The check of one entry in the browser, by WebCrypto: octets -> header -> leaf -> root, the signatures of the tree
// head, and, with a root certificate from the reader's own file, the chain above the sign key. It believes nothing that
// the page says; it fetches the receipt, the octets and the certificates, and computes. Anchors are left to
// dbox-verify, as the page says.
"use strict";

const RSA = { name: "RSASSA-PKCS1-v1_5", hash: "SHA-256" };
// Extended key usage "may sign tree heads", as dre.trust has it.
const LOG_SIGNING = "06202a864886f71401be40937ad55f83d218a26b81a73c82d33f87d0973384ccc629";
const hex = (octets) => Array.from(octets, (octet) => octet.toString(16).padStart(2, "0")).join("");
const same = (one, other) => one.length === other.length && one.every((octet, at) => octet === other[at]);
const text = (octets) => new TextDecoder("utf-8", { fatal: true }).decode(octets);

function join(...parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

async function sha256(...parts) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", join(...parts)));
}

function base64(words) {
  const octets = Uint8Array.from(atob(words), (letter) => letter.charCodeAt(0));
  if (btoa(String.fromCharCode(...octets)) !== words) throw new Error("base64 that is not in its one form");
  return octets;
}

// --- Receipt, header, tree head ---

function parseReceipt(octets) {
  const words = text(octets);
  const cut = words.indexOf("\n\n");
  const lines = words.slice(0, cut).split("\n");
  if (cut < 0 || lines.shift() !== "c2sp.org/tlog-proof@v1") throw new Error("not a receipt");
  const extra = [];
  while (lines.length && lines[0].startsWith("extra ")) extra.push(base64(lines.shift().slice(6)));
  const index = /^index (0|[1-9][0-9]{0,14})$/.exec(lines.shift() || "");
  if (!index || extra.length < 1 || extra.length > 2) throw new Error("not a receipt: header or index is missing");
  const note = words.slice(cut + 2);
  const end = note.lastIndexOf("\n\n");
  const body = note.slice(0, end + 1);
  const signatures = note.slice(end + 2).trimEnd().split("\n").map((line) => {
    const [dash, name, value] = line.split(" ");
    if (dash !== "—" || !value) throw new Error("not a signature line");
    const all = base64(value);
    return { name, id: all.slice(0, 4), value: all.slice(4) };
  });
  const [origin, size, root, time] = body.split("\n");
  return {
    header: extra[0], salt: extra[1] || new Uint8Array(), index: Number(index[1]), path: lines.map(base64),
    body, signatures, origin, size: Number(size), root: base64(root), time: time.replace(/^time /, ""),
  };
}

function parseHeader(octets) {
  const lines = text(octets).split("\n");
  const names = ["log", "stream", "writer", "time", "seq", "length", "digest"];
  if (lines.shift() !== "dre-entry/v1" || lines.length !== 8 || lines[7] !== "") throw new Error("not an entry header");
  const fields = {};
  names.forEach((name, at) => {
    if (!lines[at].startsWith(name + " ")) throw new Error("not an entry header");
    fields[name] = lines[at].slice(name.length + 1);
  });
  return fields;
}

// RFC 9162, 2.1.3.2. Numbers stay below 2^53, so they are divided and not shifted.
async function rootOf(leaf, index, size, path) {
  if (index >= size) throw new Error("the index lies outside of the tree");
  let node = index, last = size - 1, value = leaf;
  const half = (number) => Math.floor(number / 2);
  for (const sibling of path) {
    if (last === 0) throw new Error("the path is too long");
    if (node % 2 === 1 || node === last) {
      value = await sha256([1], sibling, value);
      while (node % 2 === 0 && node !== 0) {
        node = half(node);
        last = half(last);
      }
    } else {
      value = await sha256([1], value, sibling);
    }
    node = half(node);
    last = half(last);
  }
  if (last !== 0) throw new Error("the path is too short");
  return value;
}

// --- Certificates: as much DER as the profile of dbox-init needs ---

function der(octets, at = 0) {
  const tag = octets[at];
  let length = octets[at + 1], start = at + 2;
  if (length & 0x80) {
    const count = length & 0x7f;
    if (count < 1 || count > 3) throw new Error("malformed certificate");
    length = 0;
    for (let step = 0; step < count; step++) length = length * 256 + octets[start++];
  }
  const end = start + length;
  if (!(end <= octets.length)) throw new Error("malformed certificate");
  return { tag, raw: octets.subarray(at, end), value: octets.subarray(start, end), end };
}

function children(node) {
  const found = [];
  for (let at = 0; at < node.value.length; at = found[found.length - 1].end) found.push(der(node.value, at));
  return found;
}

function time(node) {
  const words = text(node.value);
  const year = node.tag === 0x17 ? (Number(words.slice(0, 2)) < 50 ? "20" : "19") + words.slice(0, 2) : words.slice(0, 4);
  const rest = node.tag === 0x17 ? words.slice(2) : words.slice(4);
  const part = (at) => rest.slice(at, at + 2);
  return `${year}-${part(0)}-${part(2)}T${part(4)}:${part(6)}:${part(8)}.000Z`;
}

function parseCertificate(octets) {
  const [tbs, , signature] = children(der(octets));
  const parts = children(tbs);
  if (parts[0].tag === 0xa0) parts.shift();
  const [, algorithm, issuer, validity, subject, key] = parts;
  const [begin, end] = children(validity).map(time);
  const extensions = {};
  const block = parts.find((part) => part.tag === 0xa3);
  for (const one of block ? children(children(block)[0]) : []) {
    const fields = children(one);
    extensions[hex(fields[0].value)] = fields[fields.length - 1].value;
  }
  return {
    raw: octets, tbs: tbs.raw, algorithm: hex(algorithm.raw), signature: signature.value.subarray(1),
    issuer: hex(issuer.raw), subject: hex(subject.raw), key: key.raw, begin, end, extensions, name: commonName(subject),
  };
}

function commonName(subject) {
  for (const set of children(subject)) {
    const [kind, value] = children(children(set)[0]);
    if (hex(kind.value) === "550403") return text(value.value);
  }
  return "(no name)";
}

function isAuthority(certificate) {
  const constraints = certificate.extensions["551d13"], usage = certificate.extensions["551d0f"];
  if (!constraints || !usage) return false;
  const flags = children(der(constraints));
  return flags.length > 0 && flags[0].tag === 1 && flags[0].value[0] === 0xff && (der(usage).value[1] & 0x04) !== 0;
}

function signsHeads(certificate, origin) {
  const purpose = certificate.extensions["551d25"], names = certificate.extensions["551d11"];
  if (!purpose || !names || isAuthority(certificate)) return false;
  const urls = children(der(names)).filter((one) => one.tag === 0x86).map((one) => text(one.value));
  return urls.length === 1 && urls[0] === `https://${origin}` && children(der(purpose)).some((one) => hex(one.raw) === LOG_SIGNING);
}

function pem(words) {
  const found = words.match(/-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----/g) || [];
  return found.map((block) => {
    const inner = block.replace(/-----[A-Z ]+-----/g, "").replace(/\s/g, "");
    return parseCertificate(Uint8Array.from(atob(inner), (letter) => letter.charCodeAt(0)));
  });
}

const isRsa = (certificate) => hex(certificate.key).includes("06092a864886f70d010101");
const isEd25519 = (certificate) => hex(certificate.key).startsWith("302a300506032b6570032100");

async function verified(key, signature, signed, method = RSA) {
  const imported = await crypto.subtle.importKey("spki", key, method, false, ["verify"]);
  return crypto.subtle.verify(method, imported, signature, signed);
}

// As signed-note has it: type and key behind the name of the log. An RSA key is its SubjectPublicKeyInfo, an Ed25519
// key its 32 octets.
async function keyId(origin, certificate) {
  const rsa = join([0xff], new TextEncoder().encode("RSA-SHA256 with X.509 key"), certificate.key);
  const type = isRsa(certificate) ? rsa : join([0x01], certificate.key.subarray(12));
  return (await sha256(new TextEncoder().encode(origin + "\n"), type)).slice(0, 4);
}

// The certificate whose key signed the tree head, of those that may; its name tells of the kind in what is said.
async function signerOf(receipt, certificates, kind, method) {
  const signed = new TextEncoder().encode(receipt.body);
  for (const certificate of certificates.filter((one) => signsHeads(one, receipt.origin))) {
    const id = await keyId(receipt.origin, certificate);
    const line = receipt.signatures.find((one) => one.name === receipt.origin && same(one.id, id));
    if (!line) continue;
    const valid = certificate.begin <= receipt.time && receipt.time <= certificate.end;
    if (!valid) throw new Error(`the ${kind} key was not valid at the time of the tree head`);
    if (!(await verified(certificate.key, line.value, signed, method))) throw new Error(`the ${kind} signature of the tree head is wrong`);
    return certificate;
  }
  throw new Error(`no certificate of this box is for an ${kind} key that signed the tree head`);
}

// Younger than the rest of WebCrypto: not every browser has it. The key is that of the first test in RFC 8032.
async function knowsEd25519() {
  const key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
  const octets = Uint8Array.from(key.match(/../g), (pair) => parseInt(pair, 16));
  try {
    await crypto.subtle.importKey("raw", octets, "Ed25519", false, ["verify"]);
    return true;
  } catch {
    return false;
  }
}

async function leadsToRoot(leaf, others, roots, when) {
  let child = leaf;
  const names = [leaf.name];
  for (let step = 0; step < 8; step++) {
    const at = roots.find((root) => same(root.raw, child.raw));
    if (!(child.begin <= when && when <= child.end)) throw new Error(`${child.name} was not valid at the time of the tree head`);
    if (at) return names;
    const issuers = [...roots, ...others].filter((one) => one.subject === child.issuer && !same(one.raw, child.raw));
    let found = null;
    for (const issuer of issuers) {
      const usual = child.algorithm === "300d06092a864886f70d01010b0500";
      if (usual && isRsa(issuer) && isAuthority(issuer) && await verified(issuer.key, child.signature, child.tbs)) found = issuer;
    }
    if (!found) throw new Error(`${child.name} does not lead to the root certificate of your file`);
    child = found;
    names.push(child.name);
  }
  throw new Error("the chain is too long");
}

// --- The page ---

const card = document.getElementById("verify");

function tell(check, state, says) {
  const item = card.querySelector(`[data-check="${check}"]`);
  item.className = state;
  const badge = item.querySelector(".badge");
  badge.className = `badge ${state}`;
  const mark = document.createElement("span");
  mark.className = "mark";
  mark.setAttribute("aria-hidden", "true");
  mark.textContent = { good: "✓", bad: "✗", open: "?" }[state];
  badge.replaceChildren(mark, " " + { good: "verified", bad: "FAILED", open: "unverified" }[state]);
  item.querySelector("p").textContent = says;
}

async function load(address) {
  const answer = await fetch(address, { cache: "no-store", credentials: "same-origin" });
  if (!answer.ok) throw new Error(`${address}: the box answered ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function check(what, work) {
  try {
    const says = await work();
    tell(what, "good", says);
    return true;
  } catch (error) {
    tell(what, error.open ? "open" : "bad", error.message);
    return false;
  }
}

function open(says) {
  const error = new Error(says);
  error.open = true;
  return error;
}

async function run() {
  const number = Number(card.dataset.number);
  for (const what of ["octets", "included", "signed", "chain"]) tell(what, "open", "");
  let receipt, header, certificates;
  try {
    receipt = parseReceipt(await load(`/ui/entries/${number}/proof`));
    header = parseHeader(receipt.header);
    certificates = pem(text(await load("/ui/chain.pem")));
  } catch (error) {
    tell("included", "bad", `no receipt that can be checked: ${error.message}`);
    return;
  }
  await check("octets", async () => {
    if (card.dataset.octets === "bad") throw new Error("the box does not hand them out: its own check failed");
    if (card.dataset.octets !== "yes") throw open("you may not read the octets, or they were erased");
    const octets = await load(`/ui/entries/${number}/octets`);
    const digest = hex(await sha256(receipt.salt, octets));
    if (String(octets.length) !== header.length) throw new Error(`${octets.length} octets, the header says ${header.length}`);
    if (header.digest !== `sha256 ${digest}`) throw new Error(`their SHA-256 is ${digest}, the header has another`);
    return `SHA-256 ${digest} is in the header`;
  });
  await check("included", async () => {
    if (receipt.index !== number) throw new Error(`the receipt is of entry ${receipt.index}`);
    if (header.log !== receipt.origin) throw new Error("the header is of another log than the tree head");
    const root = await rootOf(await sha256([0], receipt.header), receipt.index, receipt.size, receipt.path);
    if (!same(root, receipt.root)) throw new Error("the path does not lead to the root of the tree head");
    return `the path of ${receipt.path.length} hashes leads to root ${hex(root).slice(0, 16)}… of ${receipt.size} entries`;
  });
  const signers = [];
  await check("signed", async () => {
    signers.push(await signerOf(receipt, certificates.filter(isRsa), "RSA", RSA));
    const said = `tree head of ${receipt.time}, by keys whose certificates came from this box: “${signers[0].name}” (RSA)`;
    if (!(await knowsEd25519())) return `${said}; this browser cannot check its Ed25519 line`;
    signers.push(await signerOf(receipt, certificates.filter(isEd25519), "Ed25519", "Ed25519"));
    return `${said} and “${signers[1].name}” (Ed25519)`;
  });
  await check("chain", async () => {
    const file = document.getElementById("root").files[0];
    if (!file) throw open("choose the root certificate you trust; this box's own word for it proves nothing");
    if (!signers.length) throw new Error("there is no sign key that could lead to it");
    const roots = pem(await file.text());
    if (!roots.length) throw open("that file has no certificate in it");
    const names = [];
    for (const one of signers) names.push((await leadsToRoot(one, certificates, roots, receipt.time)).join(" ← "));
    const prints = await Promise.all(roots.map((root) => sha256(root.raw)));
    return `${names.join("; ")}; SHA-256 of your root: ${hex(prints[0])}`;
  });
}

if (card && window.crypto && crypto.subtle) {
  card.querySelector(".script").hidden = false;
  document.getElementById("check").addEventListener("click", run);
  document.getElementById("root").addEventListener("change", run);
}
