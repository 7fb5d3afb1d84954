/** Reads a file: whether it is a photo, a small picture of it, and the same photo made smaller. */

const LONG_SIDE = 4096;
const HUGE_PIXELS = 64_000_000;
const SMALL_SIDE = 320;
const QUALITIES = [0.9, 0.8, 0.65, 0.5];
/** @type {[string, RegExp][]} the first bytes of files */
const KINDS = [
  ["JPEG", /^\xff\xd8\xff/],
  ["PNG", /^\x89PNG\r\n\x1a\n/],
  ["WebP", /^RIFF[^]{4}WEBP/],
  ["GIF", /^GIF8[79]a/],
  ["AVIF", /^[^]{4}ftyp(?:avif|avis|[^]{8,20}avif)/],
  ["HEIC", /^[^]{4}ftyp(?:hei[cxmsf]|hev[cxm]|mif1|msf1)/],
];

/** The type by the bytes, not by the name, as the service does. @param {Blob} file @returns {Promise<string | null>} */
export async function kindOf(file) {
  const bytes = new Uint8Array(await file.slice(0, 40).arrayBuffer());
  const beginning = String.fromCharCode(...bytes);
  return KINDS.find(([, pattern]) => pattern.test(beginning))?.[0] ?? null;
}

/**
 * The photo, made small enough to be sent if necessary.
 * @param {Blob} file @param {number} maxBytes @returns {Promise<Blob>} throws when this browser cannot do it
 */
export async function small(file, maxBytes) {
  const isHuge = await pixelsOf(file).then((pixels) => pixels > HUGE_PIXELS);
  if (file.size <= maxBytes && !isHuge) return file;
  for (const [number, quality] of QUALITIES.entries()) {
    const made = await drawn(file, LONG_SIDE / (number < 2 ? 1 : number), quality);
    if (made.size <= maxBytes) return made;
  }
  throw new Error("It stays too large");
}

/** URL of a small picture; "" when this browser cannot show it. One at a time: a decoded photo takes 50 MB. @param {Blob} file */
export function pictureOf(file) {
  const made = queue.then(() => drawn(file, SMALL_SIDE, 0.8)).then(URL.createObjectURL, () => "");
  queue = made;
  return made;
}
let queue = Promise.resolve("");

/** @param {Blob} file @param {number} side at most @param {number} quality @returns {Promise<Blob>} */
async function drawn(file, side, quality) {
  const whole = await createImageBitmap(file, { imageOrientation: "from-image" });
  try {
    const scale = Math.min(1, side / Math.max(whole.width, whole.height));
    const canvas = new OffscreenCanvas(
      Math.max(1, Math.round(whole.width * scale)),
      Math.max(1, Math.round(whole.height * scale)),
    );
    const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.imageSmoothingQuality = "high";
    // Transparent parts become white, not black.
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(whole, 0, 0, canvas.width, canvas.height);
    return await canvas.convertToBlob({ type: "image/jpeg", quality });
  } finally {
    whole.close();
  }
}

/** Number of pixels, read from the header without decoding; 0 where this browser does not know the type. @param {Blob} file @returns {Promise<number>} */
function pixelsOf(file) {
  const address = URL.createObjectURL(file);
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image.naturalWidth * image.naturalHeight);
    image.onerror = () => resolve(0);
    image.src = address;
  }).finally(() => URL.revokeObjectURL(address));
}
