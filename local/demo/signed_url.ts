import { withDatabase } from "../postgres/database.ts";

/** What opening a signed URL of the table showed. */
export type OpenedUrl = {
  readonly url: string;
  readonly status: number;
  readonly contentType: string | null;
  readonly bytes: number;
};

/** Opens one signed URL of the table as the register does: without a key. Undefined where no row has one that works. */
export async function openSignedUrl(dbUrl: string): Promise<OpenedUrl | undefined> {
  const { rows: [row] } = await withDatabase(dbUrl, (sql) =>
    sql.query<{ signed_url: string }>(
      `select signed_url
      from public.part_images
      where signed_url_expires_at > now()
      order by part_number
      limit 1`,
    ));
  if (row === undefined) return undefined;
  const response = await fetch(row.signed_url);
  const { byteLength } = await response.arrayBuffer();
  return {
    url: row.signed_url,
    status: response.status,
    contentType: response.headers.get("content-type"),
    bytes: byteLength,
  };
}
