/** A bucket with something of everything to look at: pictures, faults with their findings, three months of history. */
import { sampleImages } from "../../../local/demo/sample_images.ts";
import { type Lab, runToEnd } from "../../sync/support/lab.ts";

/** Makes a private bucket with real pictures and the default settings. */
export async function createPictures(lab: Lab, bucket: string, count: number): Promise<void> {
  await lab.supabase.storage.createBucket(bucket, { public: false });
  await lab.sql`insert into image_sync.settings (bucket_id) values (${bucket}) on conflict do nothing`;
  for (const { name, contentType, data } of sampleImages(count)) {
    const { error } = await lab.supabase.storage.from(bucket).upload(name, data, { contentType });
    if (error !== null) throw error;
  }
}

/** A bucket of twelve pictures from which a cleanup has archived the records of three. */
export async function cleanUp(lab: Lab, bucket: string): Promise<string> {
  await createPictures(lab, bucket, 12);
  await lab.sql`update image_sync.settings set max_delete_fraction = 1 where bucket_id = ${bucket}`;
  await runToEnd(lab, bucket);
  await lab.supabase.storage.from(bucket).remove(["000003.jpg", "000004.jpg", "000005.jpg"]);
  const { id: confirm } = await runToEnd(lab, bucket, { mode: "cleanup" });
  return (await runToEnd(lab, bucket, { mode: "cleanup", confirm })).id;
}

/** Three months of nights in which the bucket grew, with two that failed, one partial and three that nobody ran. */
export async function addHistory(lab: Lab, bucket: string): Promise<void> {
  await lab.sql`
    insert into image_sync.runs (bucket_id, mode, trigger, started_at, moved_at, finished_at, outcome, exhausted, summary, report)
    select ${bucket}, 'sync', 'schedule', n.at, n.at, n.at + make_interval(secs => 3 + n.day % 7), n.outcome, true,
      jsonb_build_object('done', 40, 'chunks', 1, 'invocations', 1, 'balanced', true, 'problems', '[]'::jsonb,
        'totals', jsonb_build_object('inserted', n.day % 5, 'signed', 10 + n.day % 9, 'failed', 0)),
      case when n.outcome <> 'failed' then jsonb_build_object(
        'bucket', jsonb_build_object('objects', 17 + (90 - n.day) / 2, 'images', 17 + (90 - n.day) / 2, 'bytes', 1190 * (17 + (90 - n.day) / 2), 'by_extension', '{}'::jsonb),
        'records', jsonb_build_object('total', 16 + (90 - n.day) / 2)) end
    from (
      select d as day, date_trunc('day', now()) - make_interval(days => d) + interval '2 hours' as at,
        case when d in (40, 41) then 'failed' when d = 17 then 'partial' else 'succeeded' end as outcome
      from generate_series(1, 88) as d
      where d not in (12, 55, 56)
    ) as n`;
}

/** What is not as it should be: each a finding with a button or a line of SQL. */
export async function addFaults(lab: Lab, bucket: string): Promise<void> {
  await runToEnd(lab, bucket);
  const { storage } = lab.supabase;
  await storage.from(bucket).remove(["000003.jpg", "000004.jpg", "000005.jpg"]);
  const [picture] = [...sampleImages(1)];
  if (picture === undefined) throw new Error("No sample image");
  for (const name of ["shelf/000001.jpg", "900001.jpg", "900002.jpg", "000010.gif"]) {
    await storage.from(bucket).upload(name, picture.data, { contentType: picture.contentType });
  }
  await lab.sql`
    update public.part_images set signed_url_expires_at = now() - interval '1 hour'
    where bucket_id = ${bucket} and file_name in ('000006.jpg', '000007.jpg')`;
  await lab.sql`
    update public.part_images set signed_url = null, signed_url_expires_at = null
    where bucket_id = ${bucket} and file_name = '000008.jpg'`;
  await lab.sql`
    update public.part_images set signed_url_expires_at = now() + make_interval(hours => 20 * (1 + substr(file_name, 1, 6)::integer % 7))
    where bucket_id = ${bucket} and file_name ~ '^0000[1-9]'`;
  await runToEnd(lab, bucket, { mode: "analyze" });
}
