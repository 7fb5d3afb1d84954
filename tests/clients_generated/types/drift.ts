/** Compares the declarations with the JavaScript and with the contracts: any difference is an error of the compiler. */
import type * as emittedQueue from "./emitted/photo-queue";
import type * as emitted from "./emitted/pipeline-client";
import type { components } from "./contract";
import type * as declared from "ai-queue-pipeline-client";
import type * as declaredQueue from "ai-queue-pipeline-client/photo-queue.js";

/** The type without private members, and with its nested types written out. */
type Plain<T> = T extends (...given: infer Given) => infer Reply
  ? (...given: Plain<Given>) => Plain<Reply>
  : T extends Promise<infer Value>
    ? Promise<Plain<Value>>
    : T extends Blob | AbortSignal | Error | Function
      ? T
      : T extends object
        ? { [Name in keyof T]: Plain<T[Name]> }
        : T;
type Same<Left, Right> = [Plain<Left>] extends [Plain<Right>] ? ([Plain<Right>] extends [Plain<Left>] ? true : false) : false;
const same = <Left, Right>(_: Same<Left, Right>) => {};
type Shapes = components["schemas"];

// the client
same<keyof declared.PipelineClient, keyof emitted.PipelineClient>(true);
same<Omit<declared.PipelineClient, "on">, Omit<emitted.PipelineClient, "on">>(true);
same<declared.ClientOptions, ConstructorParameters<typeof emitted.PipelineClient>[0]>(true);
same<declared.Events, emitted.Events>(true);
same<declared.PipelineError["details"], emitted.PipelineError["details"]>(true);
same<keyof declared.PipelineError, keyof emitted.PipelineError>(true);
same<declared.TransportName, emitted.TransportName>(true);

// the element
type Own<T> = Pick<T, Exclude<keyof T, keyof HTMLElement>>;
same<Own<declaredQueue.PhotoQueue>, Own<emittedQueue.PhotoQueue>>(true);

// replies, without `extra`: any JSON of the AI service
type Asset = Omit<Shapes["Asset"], "aiMetadata"> & { aiMetadata: Omit<Shapes["AssetAiMetadata"], "extra"> };
type Declared = Omit<declared.Asset, "aiMetadata"> & { aiMetadata: Omit<declared.AssetAiMetadata, "extra"> };
same<Declared, Asset>(true);
same<Omit<declared.Receipt, "asset">, Omit<Shapes["Receipt"], "asset">>(true);
same<Omit<declared.AssetPage, "items">, Omit<Shapes["AssetPage"], "items">>(true);
same<declared.ErrorCode, Shapes["ErrorCode"]>(true);
same<declared.ErrorDetail, Shapes["ErrorDetail"]>(true);

// frames
same<declared.AssetProcessed, Shapes["AssetProcessed"]>(true);
same<declared.Connected, Shapes["Connected"]>(true);
same<declared.AssetQueued, Shapes["AssetQueued"]>(true);
same<declared.AssetStarted, Shapes["AssetStarted"]>(true);
same<declared.AssetRetrying, Shapes["AssetRetrying"]>(true);
same<declared.AssetHeld, Shapes["AssetHeld"]>(true);
same<declared.AssetProgress, Shapes["AssetProgress"]>(true);
same<declared.AssetCorrected, Shapes["AssetCorrected"]>(true);
same<declared.AssetDeleted, Shapes["AssetDeleted"]>(true);
same<declared.OverviewChanged, Shapes["OverviewChanged"]>(true);

// this file finds differences
same<{ a: string }, { a: string | null }>(false);
same<{ a: string }, { a: string; b: string }>(false);
