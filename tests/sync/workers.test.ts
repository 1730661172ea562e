import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Advance } from "../../supabase/functions/image-sync/contract.ts";
import { type Closing, NOTHING_SIGNED } from "../../supabase/functions/image-sync/database.ts";
import {
  createBucket,
  eventually,
  expiryOf,
  imbalances,
  numberedNames,
  openRun,
  readLedgers,
  readRecords,
  runToEnd,
  waitForEnd,
  wake,
} from "./support/lab.ts";
import { control, counting, type LocalLab, openLocalLab, runJob, setLatency } from "./support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

type Leased = Extract<Advance, { next: "sign" }>;

/** What a worker knows of a chunk that it holds. */
type Held = { readonly lease: string; readonly chunk: Leased["chunk"] };

const token = () => crypto.randomUUID();

/** Leases the next chunk as a worker does. */
async function lease(run: string, worker = token(), closing: Closing | null = null): Promise<Held> {
  const lease = token();
  const answer = await lab.database.advance({ run, worker, lease, closing });
  if (answer.next !== "sign") throw new Error(`There is nothing to sign: ${JSON.stringify(answer)}`);
  return { lease, chunk: answer.chunk };
}

/** What a worker closes a chunk with; `mark` makes its URLs known again. */
function signedBy(mark: string, { lease, chunk }: Held): Closing {
  return {
    lease,
    number: chunk.number,
    base: `http://${mark}/`,
    names: chunk.names,
    paths: chunk.names,
    tokens: chunk.names.map(() => "header.payload.signature"),
    expires: chunk.names.map(() => Math.floor(Date.now() / 1000) + chunk.expiresIn),
    failures: [],
    error: null,
    storageCalls: 1,
    retries: 0,
  };
}

/** The URL that {@linkcode signedBy} makes for a name. */
const urlBy = (mark: string, name: string) => `http://${mark}/${name}?token=header.payload.signature`;

/** Works on a run until nothing is left, with URLs of its own making. Returns the names it signed. */
async function workAlone(run: string, mark: string): Promise<string[]> {
  const worker = token();
  const signed: string[] = [];
  let closing: Closing | null = null;
  for (let calls = 0; calls < 1000; calls++) {
    const lease = token();
    const answer: Advance = await lab.database.advance({ run, worker, lease, closing });
    closing = null;
    if (answer.next === "stop") return signed;
    if (answer.next === "wait") {
      await new Promise((resolve) => setTimeout(resolve, Math.min(answer.waitMs, 50)));
    }
    if (answer.next !== "sign") continue;
    signed.push(...answer.chunk.names);
    closing = signedBy(mark, { lease, chunk: answer.chunk });
  }
  throw new Error("The run did not end within 1,000 calls");
}

/** Lets every lease of a run run out. */
async function expireLeases(run: string): Promise<void> {
  await lab.sql`
    update image_sync.chunks set lease_expires_at = now() - interval '1 second' where run_id = ${run} and state = 'leased'`;
}

const snapshot = async (bucket: string, run: string) => ({
  records: await readRecords(lab, bucket),
  chunks: await lab.sql`select * from image_sync.chunks where run_id = ${run} order by number`,
});

describe("a call repeated after its answer got lost", () => {
  test("start: the same id opens one run, also when it has finished meanwhile", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    const request = { run: token(), bucket, mode: "sync", options: {} } as const;
    expect(await lab.database.start(request)).toMatchObject({ run: { id: request.run }, created: true });
    expect(await lab.database.start(request)).toMatchObject({ run: { id: request.run }, created: true });
    expect(await lab.database.start({ ...request, run: token() })).toMatchObject({
      run: { id: request.run },
      created: false,
    });
    await workAlone(request.run, "me");
    expect(await lab.database.start(request)).toMatchObject({ run: { id: request.run, state: "succeeded" } });
    expect(await lab.sql`select from image_sync.runs where bucket_id = ${bucket}`).toHaveLength(1);
  });

  test("advance: the same token returns the same chunk and makes no other", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 5 }, objects: numberedNames(20) });
    const run = await openRun(lab, bucket);
    const request = { run: run.id, worker: token(), lease: token(), closing: null };
    const first = await lab.database.advance(request);
    const records = await readRecords(lab, bucket);
    const second = await lab.database.advance(request);
    expect(first).toMatchObject({ next: "sign", chunk: { number: 1, names: numberedNames(5) } });
    expect(second).toMatchObject({ next: "sign", chunk: { number: 1, names: numberedNames(5) } });
    expect(await readLedgers(lab, run.id)).toHaveLength(1);
    expect(await readRecords(lab, bucket)).toEqual(records);
  });

  test("advance: a repeated close stores nothing twice and leases the same next chunk", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 5 }, objects: numberedNames(20) });
    const run = await openRun(lab, bucket);
    const worker = token();
    const request = {
      run: run.id,
      worker,
      lease: token(),
      closing: signedBy("me", await lease(run.id, worker)),
    };
    expect(await lab.database.advance(request)).toMatchObject({
      closed: "closed",
      next: "sign",
      chunk: { number: 2 },
    });
    const before = await snapshot(bucket, run.id);
    expect(await lab.database.advance(request)).toMatchObject({
      closed: "already_closed",
      next: "sign",
      chunk: { number: 2 },
    });
    expect(await snapshot(bucket, run.id)).toEqual(before);
    expect(before.chunks[0]).toMatchObject({ state: "done", ledger: { signed: 5, storage_calls: 1 } });
  });

  test("advance: a failed attempt that is reported twice counts once", async () => {
    const bucket = await createBucket(lab, {
      settings: { retry_delay: "1 hour" },
      objects: numberedNames(3),
    });
    const run = await openRun(lab, bucket);
    const held = await lease(run.id);
    const error = { code: "signing_failed", title: "Signing failed", detail: "Storage is away" };
    const closing = { ...signedBy("me", held), ...NOTHING_SIGNED, error };
    for (let call = 0; call < 2; call++) {
      await lab.database.advance({ run: run.id, worker: token(), lease: null, closing });
    }
    const [chunk] = await lab
      .sql`select state, attempts, image_sync.count_of(ledger, 'storage_calls')::integer as storage_calls from image_sync.chunks where run_id = ${run.id}`;
    expect(chunk).toEqual({ state: "pending", attempts: 1, storage_calls: 1 });
  });

  test("finish, cancel and hand-off: the second call changes nothing", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 2 }, objects: numberedNames(4) });
    const run = await openRun(lab, bucket);
    const held = await lease(run.id);
    const handOff = { run: run.id, worker: token(), leases: [held.lease] };
    const { result, counts } = await counting(lab, async () => {
      const kicked = [await lab.database.handOff(handOff), await lab.database.handOff(handOff)];
      await waitForEnd(lab, run.id);
      return kicked;
    });
    expect(result).toEqual([true, false]);
    expect(counts.function).toBe(1);
    const finished = await lab.database.readRun(run.id);
    expect(finished.state).toBe("succeeded");
    expect(await lab.database.finish({ run: run.id, probe: null, error: null })).toEqual(finished);

    const another = await openRun(lab, bucket);
    const cancelled = await lab.database.cancel(another.id);
    expect(cancelled.state).toBe("cancelled");
    expect(await lab.database.cancel(another.id)).toEqual(cancelled);
  });
});

describe("a worker that comes late", () => {
  test("after its chunk was taken over is told so and changes nothing", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const run = await openRun(lab, bucket);
    const late = await lease(run.id);
    await expireLeases(run.id);
    const next = await lease(run.id);
    expect(next.chunk).toMatchObject({ number: 1, names: numberedNames(5) });

    const before = await snapshot(bucket, run.id);
    const closing = signedBy("late", late);
    expect(await lab.database.advance({ run: run.id, worker: token(), lease: null, closing })).toMatchObject({
      closed: "stale",
    });
    expect(await snapshot(bucket, run.id)).toEqual(before);

    expect(
      await lab.database.advance({
        run: run.id,
        worker: token(),
        lease: token(),
        closing: signedBy("next", next),
      }),
    )
      .toMatchObject({ closed: "closed", next: "stop" });
    const after = await snapshot(bucket, run.id);
    expect(await lab.database.advance({ run: run.id, worker: token(), lease: token(), closing }))
      .toMatchObject({
        closed: "stale",
        next: "stop",
      });
    expect(await snapshot(bucket, run.id)).toEqual(after);
    expect(after.records.map(({ signed_url }) => signed_url)).toEqual(
      numberedNames(5).map((name) => urlBy("next", name)),
    );
    expect(await lab.database.readRun(run.id)).toMatchObject({ state: "succeeded", totals: { signed: 5 } });
  });

  test("but before anybody took its chunk over closes it all the same", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const run = await openRun(lab, bucket);
    const held = await lease(run.id);
    await expireLeases(run.id);
    expect(
      await lab.database.advance({
        run: run.id,
        worker: token(),
        lease: token(),
        closing: signedBy("me", held),
      }),
    )
      .toMatchObject({ closed: "closed", next: "stop" });
    expect(await lab.database.readRun(run.id)).toMatchObject({ state: "succeeded", totals: { signed: 5 } });
  });

  test("after its run was cancelled stores nothing", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const run = await openRun(lab, bucket);
    const held = await lease(run.id);
    await lab.database.cancel(run.id);
    const before = await snapshot(bucket, run.id);
    expect(
      await lab.database.advance({
        run: run.id,
        worker: token(),
        lease: token(),
        closing: signedBy("me", held),
      }),
    )
      .toMatchObject({ closed: "stale", next: "stop" });
    expect(await snapshot(bucket, run.id)).toEqual(before);
  });

  test("or with names outside its chunk can only write inside it", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 3 }, objects: numberedNames(6) });
    const run = await openRun(lab, bucket);
    const [first, second] = [await lease(run.id), await lease(run.id)];
    const closing = { ...signedBy("me", second), lease: first.lease };
    await lab.database.advance({ run: run.id, worker: token(), lease: null, closing });
    expect((await readRecords(lab, bucket)).filter(({ signed_url }) => signed_url !== null)).toEqual([]);
  });
});

test("a record that somebody else inserts while its file is being signed stays theirs and gets the URL", async () => {
  const names = numberedNames(5);
  const [theirs = ""] = names.slice(2);
  const bucket = await createBucket(lab, { objects: names });
  const run = await openRun(lab, bucket);
  const held = await lease(run.id);
  await lab
    .sql`insert into public.part_images (bucket_id, file_name, part_number) values (${bucket}, ${theirs}, 'their own')`;
  const closing = signedBy("me", held);
  expect(await lab.database.advance({ run: run.id, worker: token(), lease: token(), closing }))
    .toMatchObject({ closed: "closed", next: "stop" });
  const records = await readRecords(lab, bucket);
  expect(records.map(({ signed_url }) => signed_url)).toEqual(names.map((name) => urlBy("me", name)));
  expect(records[2]?.part_number).toBe("their own");
  const ended = await lab.database.readRun(run.id);
  expect(ended).toMatchObject({ state: "succeeded", totals: { inserted: 4, recorded: 1, signed: 5 } });
  expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
});

test.each([
  ["one key", ["k1.a.x", "k1.b.y", "k1.c.z"]],
  ["two keys", ["k1.a.x", "k2.b.y", "k1.c.z"]],
])("URLs arrive whole, also of names that a URL escapes, with tokens of %s", async (_, tokens) => {
  const bucket = await createBucket(lab, { objects: ["a b.jpg", "c.jpg", "é?.jpg"] });
  const run = await openRun(lab, bucket);
  const held = await lease(run.id);
  const closing = { ...signedBy("me", held), paths: held.chunk.names.map(encodeURIComponent), tokens };
  await lab.database.advance({ run: run.id, worker: token(), lease: token(), closing });
  expect((await readRecords(lab, bucket)).map(({ signed_url }) => signed_url)).toEqual([
    `http://me/a%20b.jpg?token=${tokens[0]}`,
    `http://me/c.jpg?token=${tokens[1]}`,
    `http://me/%C3%A9%3F.jpg?token=${tokens[2]}`,
  ]);
});

describe("two workers on one run", () => {
  test("share its chunks: each object is handled once", async () => {
    const names = numberedNames(300);
    const bucket = await createBucket(lab, { settings: { chunk_size: 7 }, objects: names });
    const run = await openRun(lab, bucket);
    const [one, two] = await Promise.all([workAlone(run.id, "one"), workAlone(run.id, "two")]);
    expect([...one, ...two].sort()).toEqual(names);
    expect(Math.min(one.length, two.length)).toBeGreaterThan(0);
    expect(await lab.database.readRun(run.id)).toMatchObject({
      state: "succeeded",
      balanced: true,
      chunks: 43,
      invocations: 2,
      totals: { listed: 300, inserted: 300, signed: 300, storage_calls: 43, rows_written: 300 },
    });
    expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
  });

  test("of the function itself share it too, with each chunk signed once", async () => {
    const names = numberedNames(200);
    const bucket = await createBucket(lab, { settings: { chunk_size: 10 }, objects: names });
    const run = await openRun(lab, bucket);
    await setLatency(lab, 20);
    const { result, counts } = await counting(lab, async () => {
      const answers = await Promise.all([wake(lab, run.id), wake(lab, run.id)]);
      expect(answers.map(({ status }) => status)).toEqual([202, 202]);
      return await waitForEnd(lab, run.id);
    }).finally(() => setLatency(lab, 0));
    expect(result).toMatchObject({
      state: "succeeded",
      balanced: true,
      invocations: 2,
      totals: { listed: 200, inserted: 200, signed: 200, storage_calls: 20, rows_written: 200 },
    });
    expect(counts.storage).toEqual({ sign_many: 20 });
    expect((await readRecords(lab, bucket)).map(({ file_name }) => file_name)).toEqual(names);
  });

  test("and a POST while it is open join the one run", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 10 }, objects: numberedNames(100) });
    await setLatency(lab, 30);
    try {
      const posts = await Promise.all(
        Array.from({ length: 6 }, () => lab.call({ method: "POST", body: JSON.stringify({ bucket }) })),
      );
      const answers = await Promise.all(
        posts.map(async (response) => await response.json() as { id: string; created: boolean }),
      );
      expect(posts.map(({ status }) => status)).toEqual(posts.map(() => 202));
      expect(new Set(answers.map(({ id }) => id)).size).toBe(1);
      expect(answers.filter(({ created }) => created)).toHaveLength(1);
      const run = await waitForEnd(lab, answers[0]?.id ?? "");
      expect(run).toMatchObject({
        state: "succeeded",
        balanced: true,
        totals: { inserted: 100, signed: 100, storage_calls: 10 },
      });
      expect(await lab.sql`select from image_sync.runs where bucket_id = ${bucket}`).toHaveLength(1);
    } finally {
      await setLatency(lab, 0);
    }
  });

  test("never see a second open run of one mode, not even by SQL", async () => {
    const bucket = await createBucket(lab);
    await openRun(lab, bucket);
    await expect(
      lab.sql`insert into image_sync.runs (bucket_id, mode, trigger) values (${bucket}, 'sync', 'request')`,
    )
      .rejects.toMatchObject({ code: "23505", constraint_name: "runs_open_key" });
  });
});

describe("a worker that is killed", () => {
  test(
    "in the middle leaves a run that the watchdog's next kick finishes, with the counts right",
    async () => {
      const names = numberedNames(400);
      const bucket = await createBucket(lab, {
        settings: { chunk_size: 10, lease_duration: "3 seconds" },
        objects: names,
      });
      const run = await openRun(lab, bucket);
      await setLatency(lab, 150);
      await wake(lab, run.id);
      const reached = await eventually(async () => {
        const [chunks] = await lab.sql`
        select count(*) filter (where state = 'done')::integer as done, count(*) filter (where state = 'leased')::integer as leased
        from image_sync.chunks where run_id = ${run.id}`;
        return chunks?.["done"] >= 5 && chunks?.["leased"] > 0 ? chunks : undefined;
      }, "some chunks to be done and some to be at work");
      await control(lab, "POST", "/function/kill");
      await setLatency(lab, 0);
      expect(reached["done"]).toBeLessThan(40);
      expect(await lab.database.readRun(run.id)).toMatchObject({ state: "open" });

      // A request of the dead that was under way may still lease a chunk: its lease has to run out like the others.
      await eventually(async () => {
        const alive = await lab.sql`
        select from image_sync.chunks where run_id = ${run.id} and state = 'leased' and lease_expires_at > now()`;
        return alive.length === 0 ? true : undefined;
      }, "the leases of the killed worker to run out");
      await lab.sql`
      update image_sync.runs set moved_at = now() - interval '1 minute', kicked_at = now() - interval '1 minute' where id = ${run.id}`;
      await runJob(lab, "image-sync-watchdog");
      const finished = await waitForEnd(lab, run.id);
      expect(finished).toMatchObject({
        state: "succeeded",
        balanced: true,
        invocations: 2,
        totals: { listed: 400, images: 400, inserted: 400, signed: 400, failed: 0 },
      });
      expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
      const records = await readRecords(lab, bucket);
      expect(records.map(({ file_name }) => file_name)).toEqual(names);
      const late = records.filter(({ signed_url, signed_url_expires_at }) =>
        signed_url === null || (signed_url_expires_at?.getTime() ?? Infinity) > expiryOf(signed_url).getTime()
      );
      expect(late).toEqual([]);
      expect(await runToEnd(lab, bucket)).toMatchObject({
        state: "succeeded",
        totals: { rows_written: 0, storage_calls: 0 },
      });
    },
    120_000,
  );

  test("again and again costs its chunk its attempts: it is dead after max_attempts, and its run partial or failed", async () => {
    const bucket = await createBucket(lab, {
      settings: { chunk_size: 5, max_attempts: 2 },
      objects: numberedNames(8),
    });
    const run = await openRun(lab, bucket);
    const unlucky = await lease(run.id);
    await expireLeases(run.id);
    expect((await lease(run.id)).chunk).toMatchObject({ number: 1, names: unlucky.chunk.names });
    await expireLeases(run.id);
    // It is given up: nothing is left to sign, and its records are written without URLs.
    const givenUp = await lease(run.id);
    expect(givenUp.chunk).toMatchObject({ number: 1, names: [] });
    const next = await lease(run.id, token(), signedBy("me", givenUp));
    expect(next.chunk.number).toBe(2);
    const closing = signedBy("me", next);
    await lab.database.advance({ run: run.id, worker: token(), lease: token(), closing });
    expect(await lab.database.readRun(run.id)).toMatchObject({
      state: "partial",
      stop_reason: "dead_chunks",
      totals: { listed: 8, inserted: 8, signed: 3, failed: 5 },
      problems: [{ name: "chunk 1", code: "lease_expired" }],
    });
    // And the three URLs that were made up here, of no address of this project.
    expect(await runToEnd(lab, bucket)).toMatchObject({
      state: "succeeded",
      totals: { inserted: 0, signed: 5 + 3 },
    });
  });
});
