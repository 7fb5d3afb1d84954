/** <photo-queue> in the JSX of React 19 or newer: `import type {} from "ai-queue-pipeline-client/react"`. */

import type { DetailedHTMLProps, HTMLAttributes } from "react";
import type { PhotoQueue, PhotoQueueProps } from "./photo-queue.js";

declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      "photo-queue": Omit<DetailedHTMLProps<HTMLAttributes<PhotoQueue>, PhotoQueue>, keyof PhotoQueueProps> &
        PhotoQueueProps;
    }
  }
}
