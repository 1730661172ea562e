import { Buffer } from "node:buffer";
import jpeg from "jpeg-js";
import { PNG } from "pngjs";

/** A file for the sample bucket. */
export type SampleImage = {
  readonly name: string;
  readonly contentType: string;
  readonly data: Uint8Array<ArrayBuffer>;
};

const WIDTH = 64;
const HEIGHT = 48;

/** So many different pictures; the encoder takes 15 ms for each, whatever its size. */
const PICTURES = 100;

/**
 * Real pictures in a hundred colours: `count` JPEG files named `000001.jpg` and on, and beside them one PNG for every
 * hundred, which the default settings leave out.
 */
export function* sampleImages(count: number): Generator<SampleImage> {
  const pictures: Uint8Array<ArrayBuffer>[] = [];
  for (let number = 1; number <= count; number++) {
    const data = pictures[number % PICTURES] ??= new Uint8Array(
      jpeg.encode({ data: pixels(number), width: WIDTH, height: HEIGHT }, 80).data,
    );
    yield { name: `${String(number).padStart(6, "0")}.jpg`, contentType: "image/jpeg", data };
  }
  for (let number = 1; number <= Math.ceil(count / 100); number++) {
    const png = new PNG({ width: WIDTH, height: HEIGHT });
    png.data = pixels(number);
    const name = `drawing-${String(number).padStart(3, "0")}.png`;
    yield { name, contentType: "image/png", data: new Uint8Array(PNG.sync.write(png)) };
  }
}

/** A diagonal gradient whose colour follows from the number. */
function pixels(number: number): Buffer<ArrayBuffer> {
  const data = Buffer.alloc(WIDTH * HEIGHT * 4);
  for (let place = 0; place < WIDTH * HEIGHT; place++) {
    const shade = (place % WIDTH) + Math.floor(place / WIDTH);
    data.set(
      [(number * 37 + shade) % 256, (number * 91) % 256, (number * 17 + shade * 2) % 256, 255],
      place * 4,
    );
  }
  return data;
}
