/** What a page says that could not be made. */
import type { FC } from "hono/jsx";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import type { View } from "../view.ts";

/** Why there is nothing to see, and the way on. */
export const Failure: FC<{ view: View; title: string; message: string }> = ({ view, title, message }) => (
  <section class="card" aria-labelledby="failure-title">
    <h1 id="failure-title">{title}</h1>
    <p role="alert" class="banner error">{safeText(message)}</p>
    <p>
      <a class="button" href={view.path}>Go on</a>
    </p>
  </section>
);
