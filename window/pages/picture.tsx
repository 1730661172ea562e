/** One file: its picture, and why it is, or is not, in the register. */
import type { FC } from "hono/jsx";
import type { FileStatus, RecordItem } from "../../supabase/functions/image-sync/contract.ts";
import { bytes } from "../../supabase/functions/image-sync/text/words.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { link, type View } from "../view.ts";
import { Badge, Card, Figure, Name, Time } from "../parts/basics.tsx";
import { Picture } from "./pictures.tsx";

/** The page of a file. */
export const PicturePage: FC<{ view: View; file: FileStatus; item: RecordItem | undefined }> = (
  { view, file, item },
) => (
  <>
    <p>
      <a href={link("/pictures", { bucket: view.bucket })}>All pictures</a>
    </p>
    <h1>
      <Name of={file.file_name} />
    </h1>
    <div class="columns picture">
      <div class="card frame">
        <Picture item={item ?? { file_name: file.file_name, state: "missing" }} large />
      </div>
      <div>
        <Card title="Why">
          <p>
            <Badge tone={file.in_sync ? "good" : "warning"}>{file.in_sync ? "in sync" : "not in sync"}</Badge>
            {" "}
            {file.in_sync && file.reasons.length === 0 ? "The file is there, and its URL works." : null}
          </p>
          {file.reasons.length === 0 ? null : (
            <ul>
              {file.reasons.map(({ code, detail }) => (
                <li>
                  {safeText(detail)}. <span class="dim">[{safeText(code)}]</span>
                </li>
              ))}
            </ul>
          )}
        </Card>
        <Card title="Object and record">
          <dl class="figures small">
            <Figure label="File" value={sizeOf(file)} note={safeText(file.object?.extension ?? "")} />
            <Figure
              label="Part number"
              value={file.record === null || file.record === undefined
                ? "no record"
                : <Name of={file.record.part_number ?? ""} />}
            />
            <Figure
              label="URL"
              value={file.record?.usable_until === null || file.record?.usable_until === undefined
                ? file.record?.signed === true ? "expired" : "none"
                : (
                  <>
                    dies <Time at={file.record.usable_until} now={view.now} />
                  </>
                )}
            />
            <Figure
              label="Last verify"
              value={verifiedWords(file)}
              note={file.verified === null || file.verified === undefined
                ? undefined
                : <Time at={file.verified.at} now={view.now} />}
            />
          </dl>
        </Card>
        <Card title="Twins">
          {(file.twins ?? []).length === 0 ? <p class="dim">No other file has its part number.</p> : (
            <ul>
              {file.twins?.map((twin) => (
                <li>
                  <a href={link("/picture", { bucket: view.bucket, file: twin })}>
                    <Name of={twin} />
                  </a>
                </li>
              ))}
            </ul>
          )}
        </Card>
      </div>
    </div>
  </>
);

function sizeOf({ object }: FileStatus): string {
  if (object === null || object === undefined) return "not in the bucket";
  return object.bytes === null ? "of unknown size" : bytes(object.bytes);
}

function verifiedWords({ verified }: FileStatus): string {
  if (verified === null || verified === undefined) return "not looked at yet";
  return verified.code === null ? "showed an image" : safeText(verified.code.replaceAll("_", " "));
}
