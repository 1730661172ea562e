/** What has to hold of records whose part numbers the table's owner has made unique. */
import type { Sql } from "postgres";

/** The part number of a file: its name without folders and extension. */
export const partNumberOf = (name: string): string => name.replace(/^.*\//, "").replace(/\.[^.]*$/, "");

type Row = { readonly file_name: string; readonly part_number: string; readonly object_id: string | null };
type Image = { readonly id: string; readonly name: string };

/**
 * Images without a record, and records that are not at their image's name, where no part number and no place explains it.
 * One that waits for another is explained where at the end of the row somebody stays; a ring of records is not: a sync settles it.
 */
export async function findUnsettled(admin: Sql, bucket: string): Promise<string[]> {
  const records = await admin<Row[]>`
    select file_name, part_number, object_id from public.part_images where bucket_id = ${bucket}`;
  const images = await admin<Image[]>`
    select id, name from image_sync.objects where bucket_id = ${bucket} and extension in ('jpg', 'jpeg')`;
  const recordAt = new Map(records.map((record) => [record.file_name, record]));
  const recordWith = new Map(records.map((record) => [record.part_number, record]));
  const imageAt = new Map(images.map((image) => [image.name, image]));
  const imageOf = new Map(images.map((image) => [image.id, image]));

  const destinationOf = (record: Row): Image | undefined => {
    const image = imageOf.get(record.object_id ?? "");
    return image !== undefined && recordAt.get(image.name)?.object_id !== image.id ? image : undefined;
  };
  const isTaken = (image: Image, waiting: readonly Row[]): boolean =>
    [recordAt.get(image.name), recordWith.get(partNumberOf(image.name))].some((other) => {
      if (other === undefined || waiting.includes(other)) return false;
      const next = destinationOf(other);
      return next === undefined || isTaken(next, [...waiting, other]);
    });

  const unrecorded = images.filter((image) =>
    !recordAt.has(image.name) && !records.some((record) => record.object_id === image.id) &&
    !isTaken(image, [])
  );
  const behind = records.filter((record) => {
    const image = destinationOf(record);
    return image !== undefined && !isTaken(image, [record]);
  });
  const mistaken = records.filter((record) => {
    const image = imageAt.get(record.file_name);
    return image !== undefined && image.id !== record.object_id && destinationOf(record) === undefined;
  });
  return [
    ...unrecorded.map(({ name }) => `an image has no record: ${name}`),
    ...behind.map(({ file_name }) => `a record did not follow its file: ${file_name}`),
    ...mistaken.map(({ file_name }) =>
      `a record is of another object than the one at its name: ${file_name}`
    ),
  ];
}
