/** <photo-queue> in React's JSX. */
import "ai-queue-pipeline-client/photo-queue.js";
import type {} from "ai-queue-pipeline-client/react";
import type { PhotoQueue } from "ai-queue-pipeline-client/photo-queue.js";
import { useRef } from "react";

export function Photos({ getToken }: { getToken: () => Promise<string> }) {
  const queue = useRef<PhotoQueue>(null);
  return (
    <photo-queue
      ref={queue}
      url="https://photos.example.com"
      category="lego"
      className="photos"
      token={getToken}
      onphoto-finished={({ detail }) => console.log(detail.assetId, detail.status)}
      onphoto-accepted={({ detail }) => console.log(detail.name)}
      onphoto-unauthorized={() => queue.current?.clear()}
    />
  );
}

// @ts-expect-error a token is no number
export const wrongToken = <photo-queue token={1} />;
// @ts-expect-error it has no such member
export const wrongDetail = <photo-queue onphoto-finished={({ detail }) => detail.userId} />;
