/** An error as the Storage service answers it. Its HTTP status is often 400 with the true code in `statusCode`. */
export type StorageError = {
  readonly httpStatus: number;
  readonly statusCode: string;
  readonly error: string;
  /** Absent where S3's own words are handed on. */
  readonly message?: string;
  readonly code?: string;
};

/** Thrown by the storage code to be answered as it is. */
export class StorageFailure extends Error {
  constructor(readonly answer: StorageError) {
    super(answer.message ?? answer.error);
  }
}

/** The failures that the service's clients meet here. */
export const storageFailures = {
  invalidKey: () => failure(400, "403", "Unauthorized", "Invalid Compact JWS"),
  missingAuthorization: () =>
    failure(400, "400", "Error", "headers must have required property 'authorization'"),
  invalidRequest: (message: string) => failure(400, "400", "Error", message),
  invalidJson: () =>
    failure(
      400,
      "400",
      "SyntaxError",
      "Body is not valid JSON but content-type is set to 'application/json'",
    ),
  bodyTooLarge: () => failure(413, "413", "EntityTooLarge", "The object exceeded the maximum allowed size"),
  fileTooLarge: () =>
    failure(400, "413", "Payload too large", "The object exceeded the maximum allowed size"),
  noSuchBucket: () => failure(400, "404", "Bucket not found", "Bucket not found"),
  rangeNotSatisfiable: () => failure(416, "416", "InvalidRange", "The requested range is not satisfiable"),
  noSuchObject: () => failure(400, "404", "not_found", "Object not found"),
  /** The row is there, its content is not: as the S3 backend says it. */
  noSuchContent: () =>
    new StorageFailure({ httpStatus: 400, statusCode: "404", error: "Not found", code: "NoSuchKey" }),
  duplicate: () => failure(400, "409", "Duplicate", "The resource already exists"),
  invalidName: (name: string) => failure(400, "400", "InvalidKey", `Invalid key: ${name}`),
  invalidBucketName: () =>
    new StorageFailure({
      httpStatus: 400,
      statusCode: "400",
      error: "InvalidBucketName",
      message: "Bucket name invalid",
      code: "InvalidBucketName",
    }),
  invalidMimeType: (type: string) =>
    failure(400, "415", "invalid_mime_type", `mime type ${type} is not supported`),
  bucketNotEmpty: () =>
    failure(400, "409", "ResourceNotEmpty", "The bucket you tried to delete is not empty"),
  accessDenied: () => failure(400, "403", "Unauthorized", "new row violates row-level security policy"),
  invalidToken: (message: string) => failure(400, "400", "InvalidJWT", message),
  tokenForAnotherPath: () => failure(400, "400", "InvalidSignature", "The url do not match the signature"),
  featureNotEnabled: () => failure(403, "403", "FeatureNotEnabled", "feature not enabled for this tenant"),
  unrenderable: (message: string) => failure(400, "422", "ImageProcessingError", message),
  databaseTimeout: () => failure(544, "544", "DatabaseTimeout", "The connection to the database timed out"),
  internal: (message: string) => failure(500, "500", "Internal", message),
};

function failure(httpStatus: number, statusCode: string, error: string, message: string): StorageFailure {
  return new StorageFailure({ httpStatus, statusCode, error, message });
}
