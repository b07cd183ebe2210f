/** Builds the page into built/, or into the folder that is named: `make page`. */

import { build } from "esbuild";
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const built = resolve(process.argv[2] ?? join(here, "built"));
const STATIC = ["index.html", "icon.svg"];
const FOLDERS = [".", "source", "styles"];

function sha256(data) {
  return createHash("sha256").update(data).digest("hex");
}

function filesIn(folder) {
  const entries = readdirSync(join(here, folder), { withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map(({ name }) => join(folder, name));
}

/** Returns the hash of the lines "NAME SHA256" of the sources, in the order of their names. */
function hashOfSources() {
  const names = FOLDERS.flatMap(filesIn).filter((name) => name !== "README.md");
  const lines = names.sort().map((name) => `${name} ${sha256(readFileSync(join(here, name)))}\n`);
  return sha256(lines.join(""));
}

/** Returns the licences of the packages that are part of page.js. */
function licences(inputs) {
  const found = Object.keys(inputs).map((path) => {
    return /^node_modules\/(@[^/]+\/[^/]+|[^/]+)/.exec(path)?.[0];
  });
  const folders = [...new Set(found.filter(Boolean))].sort();
  const texts = folders.map((folder) => {
    const { name, version } = JSON.parse(readFileSync(join(here, folder, "package.json"), "utf-8"));
    return `${name} ${version}\n\n${readFileSync(join(here, folder, "LICENSE"), "utf-8").trim()}\n`;
  });
  return texts.join(`\n${"-".repeat(80)}\n\n`);
}

rmSync(built, { recursive: true, force: true });
mkdirSync(built, { recursive: true });
const result = await build({
  absWorkingDir: here,
  entryPoints: [
    { in: "source/main.ts", out: "page" },
    { in: "styles/page.css", out: "page" },
  ],
  outdir: built,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  charset: "utf8",
  legalComments: "none", // LICENSES.txt has them
  metafile: true,
});
for (const name of STATIC) cpSync(join(here, name), join(built, name));
writeFileSync(join(built, "LICENSES.txt"), licences(result.metafile.inputs));

// tests/serving/test_page.py compares these, so that a forgotten build fails.
const files = readdirSync(built).sort();
const hashes = files.map((name) => [name, sha256(readFileSync(join(built, name)))]);
const manifest = { sources: hashOfSources(), files: Object.fromEntries(hashes) };
writeFileSync(join(built, "manifest.json"), `${JSON.stringify(manifest, null, 2)}\n`);
