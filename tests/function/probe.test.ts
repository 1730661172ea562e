import { expect, test } from "vitest";
import { probe } from "../../supabase/functions/image-sync/probe.ts";

const base = "https://ref.example/storage/v1/object/sign/part-images/";
const image = () => Promise.resolve(new Response("x", { headers: { "Content-Type": "image/jpeg" } }));

/** Probes one URL; what was fetched for it. */
async function probeUrl(url: string, answer: () => Promise<Response> = image) {
  const fetched: { url: string; redirect: string | undefined }[] = [];
  const result = await probe({ targets: [{ name: "a.jpg", url }], base }, (input, init) => {
    fetched.push({ url: String(input), redirect: init?.redirect });
    return answer();
  });
  return { fetched, result };
}

test("a URL of the bucket is fetched once, and no redirect followed", async () => {
  const { fetched, result } = await probeUrl(`${base}a.jpg?token=x`);
  expect(fetched).toEqual([{ url: `${base}a.jpg?token=x`, redirect: "manual" }]);
  expect(result).toEqual({ checked: 1, ok: 1, failures: [] });
});

test.each([
  "http://127.0.0.1/internal",
  "http://ref.example/storage/v1/object/sign/part-images/a.jpg",
  "https://ref.example:8443/storage/v1/object/sign/part-images/a.jpg",
  "https://ref.example.evil.example/storage/v1/object/sign/part-images/a.jpg",
  "https://ref.example@evil.example/storage/v1/object/sign/part-images/a.jpg",
  "https://user:secret@ref.example/storage/v1/object/sign/part-images/a.jpg",
  "https://ref.example/storage/v1/object/sign/other/a.jpg",
  "https://ref.example/storage/v1/object/sign/part-images/../other/a.jpg",
  "https://ref.example/storage/v1/object/sign/part-images/%2e%2e/%2e%2e/list/x",
  "https://ref.example/storage/v1/object/sign/part-images\\..\\other\\a.jpg",
  "https://ref.example/rest/v1/rpc/image_sync_report",
  "//evil.example/a.jpg",
  "file:///etc/passwd",
  "javascript:alert(1)",
  "",
])("a URL of another address is not fetched: %s", async (url) => {
  const { fetched, result } = await probeUrl(url);
  expect(fetched).toEqual([]);
  expect(result.failures).toEqual([{
    name: "a.jpg",
    status: null,
    content_type: null,
    error: "foreign address",
  }]);
});

test("a redirect shows no image", async () => {
  const { result } = await probeUrl(
    `${base}a.jpg`,
    () => Promise.resolve(new Response(null, { status: 302, headers: { Location: "http://127.0.0.1/" } })),
  );
  expect(result.failures).toMatchObject([{ status: 302 }]);
});
