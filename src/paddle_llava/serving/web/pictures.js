// A file, a pasted picture or an address becomes a picture to show and to send.
import { word } from "./words.js";

export const MOST = 8; // with one question
const AS_IT_IS = 1 << 20; // bytes; what is larger is drawn anew, smaller
const LONGEST_SIDE = 1344; // pixels; LLaVA 1.6 looks at 1008 at most
const SENT = ["image/jpeg", "image/png", "image/webp", "image/gif"];

/** `{ url, width, height, name }`, `url` a data URI. Throws an `Error` for a person when it is no picture. */
export async function readPicture(blob, name = blob.name ?? "") {
  const address = URL.createObjectURL(blob);
  try {
    const image = await decoded(address).catch(() => {
      throw new Error(word("notPicture", name));
    });
    const { naturalWidth: width, naturalHeight: height } = image;
    if (blob.size <= AS_IT_IS && SENT.includes(blob.type)) return { url: await dataUri(blob), width, height, name };
    return { ...smaller(image, width, height), name };
  } finally {
    URL.revokeObjectURL(address);
  }
}

async function decoded(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  if (!image.naturalWidth) throw new Error("no size"); // an SVG without one
  return image;
}

function smaller(image, fullWidth, fullHeight) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(fullWidth, fullHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(fullWidth * scale));
  canvas.height = Math.max(1, Math.round(fullHeight * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // transparency is laid on white, as the server does
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return { url: canvas.toDataURL("image/jpeg", 0.92), width: canvas.width, height: canvas.height };
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** The pictures in what was dropped or pasted. */
export function picturesIn(transfer) {
  return [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
}
