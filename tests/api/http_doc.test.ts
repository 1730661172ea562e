/** docs/http.md: every line of it runs as it stands. */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { projectDirectory } from "../support/stack.ts";
import { jpeg, upload } from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
  await lab.supabase.storage.createBucket("part-images", { public: false });
  await upload(lab, "part-images", "000001.jpg", jpeg);
});
afterAll(() => lab?.close());

test("every line runs, in order, and answers as it says", async () => {
  const text = await readFile(join(projectDirectory, "docs/http.md"), "utf8");
  const blocks = [...text.matchAll(/```bash\n([\s\S]*?)```/g)].map(([, block = ""]) => block);
  expect(blocks).toHaveLength(5);
  const env = {
    ...process.env,
    API: `${lab.stack.url}/functions/v1/image-sync`,
    KEY: lab.stack.secretKey,
  };
  const shell = (script: string) => promisify(execFile)("sh", ["-eu", "-c", script], { env });
  const [, starting = "", reading = "", register = "", changing = ""] = blocks;
  expect((await shell(starting)).stdout).toContain('"mode":"cleanup"');
  const read = (await shell(reading)).stdout;
  for (
    const part of [
      '"healthy":true',
      "part-images: healthy",
      '"in_sync":true',
      '"buckets":[',
      '"runs":[',
      '"names":[]',
      '"state":"working"',
      '"urls":1',
      '"inserted":1',
      '"archives":[]',
      '"bounds":"From 1 to 1,000."',
    ]
  ) {
    expect(read).toContain(part);
  }
  const registered = (await shell(register)).stdout;
  expect(registered.match(/^"000001","000001\.jpg","http/gm)).toHaveLength(2);
  expect(registered).toContain('"name":"anna"');
  expect(registered).toContain('"revoked":true');
  const changed = (await shell(changing)).stdout;
  expect(changed).toContain('"changed":true');
  expect(changed).toContain('"10 days"');
}, 60_000);
